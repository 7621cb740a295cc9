"""What every job on a run begins with: the index of its data set, made once and kept."""

from __future__ import annotations

from orchestrator.errors import RunError
from orchestrator.reducing.runs import read_index
from orchestrator.spec import Spec
from workers import layout
from workers.images import EncodedImages, ImageSet, Index
from workers.settings import ParquetImages, WebDataset
from workers.store import Store


def known_index(store: Store, spec: Spec) -> Index | None:
    """The data set's index as the run has it, where that spares something. Raises RunError if it is damaged."""
    # Of folders, the listing that would tell whether an index still holds is all there is to make one.
    return read_index(store) if isinstance(spec.dataset, WebDataset | ParquetImages) else None


def keep_index(store: Store, images: ImageSet) -> None:
    """Leave the data set's index where workers find it, and the next call of this command."""
    if not isinstance(images, EncodedImages):
        return
    try:
        kept = read_index(store)
    except RunError:
        kept = None
    if kept is None or (kept.digest, kept.source) != (images.index.digest, images.index.source):
        store.replace(layout.INDEX, images.index.content.to_pybytes())

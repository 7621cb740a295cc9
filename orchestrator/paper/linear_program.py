"""The paper's rival [17], really run: small networks certified by the dual of a linear program, alone and in a cascade.

A cascade's next network learns of the training images that none before it certifies (Wong et al. 2018, section 3.3).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from orchestrator.errors import SpecError
from orchestrator.reducing.tables import METADATA_KEY
from orchestrator.spec import Spec, validate
from orchestrator.sweeping import beside_checkpoint
from stn_core.dual import margins
from workers.columns import column
from workers.counting import load_model
from workers.images import DatasetError, load_all
from workers.settings import Dataset

#: Version of the columns below.
SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        column("network", pa.int64(), "its number in the cascade, from 1"),
        column("index", pa.int64(), "the image's number in the data set"),
        column("label", pa.int64(), "its true class"),
        column("predicted", pa.int64(), "the network's answer"),
        column(
            "margin",
            pa.float64(),
            "by how much the predicted class's logit exceeds all others within the table's radius, at least: certified "
            "where positive",
        ),
    ]
)

#: Largest, of the one-cycle schedule: networks so small bear more than the spec's.
LEARNING_RATE = 0.003

#: Images whose bounds are computed at once.
_CHUNK = 256

#: The network of the cascade, for each of Table 1's.
NETWORKS = {"mnist": "mnist_shallow", "cifar10": "cifar10_shallow"}


@dataclass(frozen=True)
class Counted:
    """What a cascade, or one network, comes to.

    Attributes:
        certified: share of images that the first network to certify any class certifies as what they are.
        natural: share that this network, or the last where none certifies, answers right.
    """

    certified: float
    natural: float


def network_spec(spec: Spec, number: int, radius: float) -> Spec:
    """The job that trains a network of the cascade.

    Args:
        spec: Table 1's; its training images, the number of epochs, the size of batches and the seed are kept.
        number: in the cascade, from 1.
        radius: L2, in [0, 1] pixel units.

    Raises:
        SpecError: the spec has no training section or checkpoint.
    """
    training = spec.training
    if training is None or spec.model.checkpoint is None:
        raise SpecError("a linear program needs the spec's training section and model.checkpoint")
    kept = ("dataset", "validation", "epochs", "batch_size", "seed", "threads_per_worker")
    content = spec.model_dump()
    content["model"] = {
        "name": NETWORKS[spec.model.name],
        "num_classes": spec.model.num_classes,
        "checkpoint": beside_checkpoint(spec.model.checkpoint, f"linear-program-{number}"),
    }
    content["training"] = {key: value for key, value in content["training"].items() if key in kept} | {
        "method": "dual",
        "radius": radius,
        "warmup": training.epochs / 2,
        "learning_rate": LEARNING_RATE,
    }
    return validate(content, f"linear program, network {number}")


def train_and_certify(
    spec: Spec,
    networks: int,
    radius: float,
    *,
    train: Callable[[Spec, NDArray[np.int64] | None], object],
    tell: Callable[[str], None],
) -> pa.Table:
    """Train the cascade and certify the data set's images by each of its networks.

    Args:
        spec: Table 1's.
        networks: at most so many; fewer where training images run out.
        radius: L2, in [0, 1] pixel units.
        train: as a spec says, on those of its training images.
        tell: told what is being done.

    Returns:
        A table of ``SCHEMA``.

    Raises:
        SpecError: the spec has no training section or checkpoint, or data that cannot be used.
    """
    left: NDArray[np.int64] | None = None
    found = []
    for number in range(1, networks + 1):
        job = network_spec(spec, number, radius)
        assert job.training is not None
        which = "all" if left is None else f"the {len(left)} uncertified"
        tell(f"linear program, network {number}: learns of {which} of the training images")
        train(job, left)
        found.append(_certified(job, job.dataset, None, number, radius))
        if number < networks:
            tell(f"linear program, network {number}: certifies what it has learned of")
            measured = _certified(job, job.training.dataset, left, number, radius)
            hard = np.flatnonzero(~(measured["margin"].to_numpy() > 0))  # of a network that diverged, all
            left = hard if left is None else left[hard]
            if len(left) < job.training.batch_size:
                tell(f"linear program: the cascade ends here, {len(left)} uncertified images make no batch")
                break
    return pa.concat_tables(found)


def counted(table: pa.Table, networks: int) -> Counted:
    """The figures of the first so many networks of a table of ``SCHEMA``."""
    numbers, predicted, margin = (table[name].to_numpy() for name in ("network", "predicted", "margin"))
    cascade = [numbers == number for number in range(1, min(networks, int(numbers.max())) + 1)]
    labels = table["label"].to_numpy()[cascade[0]]
    certifies = np.stack([margin[rows] > 0 for rows in cascade])
    answers = np.stack([predicted[rows] for rows in cascade])
    deciding = np.where(certifies.any(axis=0), certifies.argmax(axis=0), len(cascade) - 1)
    right = np.take_along_axis(answers, deciding[None], axis=0)[0] == labels
    return Counted(float((right & certifies.any(axis=0)).mean()), float(right.mean()))


def encode(table: pa.Table) -> bytes:
    """A table of ``SCHEMA`` as Parquet."""
    file = io.BytesIO()
    metadata = {METADATA_KEY: json.dumps({"schema_version": SCHEMA_VERSION})}
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


def _certified(job: Spec, dataset: Dataset, only: NDArray[np.int64] | None, number: int, radius: float) -> pa.Table:
    """A table of ``SCHEMA`` for one network; in float64, so that rounding is far below any margin that counts."""
    try:
        images = load_all(dataset, job.store.options, only)
        model = load_model(job.model, job.model.num_classes or images.num_classes, job.store.options)
    except (DatasetError, ValueError) as error:
        raise SpecError(str(error)) from error
    network = model.network.double()
    predicted, margin = [], []
    with torch.inference_mode():
        for first in range(0, len(images.labels), _CHUNK):
            pixels = torch.from_numpy(images.pixels[first : first + _CHUNK]).double() / 255
            answer = network(pixels).argmax(dim=1)
            over = margins(network, pixels, answer, radius)
            # Over itself it has none.
            over.scatter_(1, answer[:, None], torch.inf)
            predicted.append(answer.numpy())
            margin.append(over.min(dim=1).values.numpy())
    columns: Sequence[object] = (
        np.full(len(images.labels), number),
        images.indices,
        images.labels,
        np.concatenate(predicted),
        np.concatenate(margin),
    )
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)

"""Training images per second: decoded by the loader's processes, by Ray Data's, and in the training process itself."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from PIL import Image

from benchmarks.measure import Row, compare
from workers.loading import Source, open_source
from workers.settings import ImageFolder

IMAGES, BATCH, SIDE, PROCESSES = 1024, 64, 224, 2


def rows() -> Iterator[Row]:
    """One short epoch of JPEG files of ImageNet's usual size: a random crop of each, in shuffled order.

    What Ray Data takes to start is part of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        dataset = ImageFolder(kind="image_folder", path=Path(folder))
        beside, here = (
            open_source("benchmark", dataset, storage=None, random_crop=SIDE, loaders=loaders)
            for loaders in (PROCESSES, 0)
        )
        ray.init(
            address="local",
            num_cpus=PROCESSES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False,
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        paths = sorted(str(path) for path in Path(folder).rglob("*.jpeg"))
        try:
            name = f"{IMAGES} JPEG files of 500 x 375, random crops of {SIDE}: {PROCESSES} loaders"
            yield compare(name, lambda: epoch(beside), "Ray Data, as many CPUs", lambda: ray_epoch(paths), rounds=3)
            yield compare(name, lambda: epoch(beside), "the training process alone", lambda: epoch(here), rounds=3)
        finally:
            ray.shutdown()
            for source in (beside, here):
                source.close()


def write_images(root: Path) -> None:
    """Photographs are smooth and grainy at once: so are these."""
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = random.normal(0, 8, (375, 500, 3))
        path = root / f"{number % 10}" / f"{number:05d}.jpeg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def epoch(source: Source) -> None:
    order = np.random.default_rng(1).permutation(IMAGES)
    asked = [order[first : first + BATCH] for first in range(0, IMAGES, BATCH)]
    for pixels, _ in source.batches(asked, [own.astype(np.uint64) for own in asked]):
        assert pixels.shape == (BATCH, 3, SIDE, SIDE)


def ray_epoch(paths: list[str]) -> None:
    """The same by Ray Data: files in shuffled order, decoded and cropped in its tasks."""
    order = np.random.default_rng(1).permutation(IMAGES)
    data = ray.data.from_items([{"path": paths[index], "seed": int(index)} for index in order]).map(crop)
    for batch in data.iter_batches(batch_size=BATCH, batch_format="numpy"):
        assert torch.from_numpy(batch["pixels"]).shape == (BATCH, 3, SIDE, SIDE)


def crop(row: dict[str, Any]) -> dict[str, Any]:
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms import functional as transform

    torch.manual_seed(row["seed"])
    image = Image.open(io.BytesIO(Path(row["path"]).read_bytes())).convert("RGB")
    part = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
    return {"pixels": np.asarray(transform.resized_crop(image, *part, [SIDE, SIDE])).transpose(2, 0, 1)}

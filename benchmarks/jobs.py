"""Whole jobs: `stn certify` and `stn plan` as processes of their own, Ray's actors, a folder as the store."""

from __future__ import annotations

import functools
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.dispatching import Instant
from benchmarks.measure import Row, alone, run, single
from benchmarks.runs import population, votes_table
from orchestrator.counting.certification import certify_run
from orchestrator.counting.crew import Crew, Device, Task
from orchestrator.on_ray import actors
from orchestrator.spec import Resources, validate
from stn_core.models import build_network
from workers import counting, counts_table, layout
from workers.counting import CountJob
from workers.ray_entry import CountingActor
from workers.store import LocalStore

#: Of the machine's cores, one thread each.
WORKERS = 2

#: Of an image, where counting is to cost nothing.
NO_DRAWS = 2

#: Shards whose counting costs nothing, through Ray's actors.
NO_OP_SHARDS = 6000

#: Shards of the runs that driver memory is compared for; the larger one is then resumed.
FEW_SHARDS, MANY_SHARDS = 1000, 100_000

#: Counting time of the long job, of the same job's part for one worker, and of the other networks' jobs, s.
LONG_S, PART_S, SHORT_S = 310.0, 60.0, 50.0

#: Where workers leave how long they counted, in the long job.
COUNTED = "STN_BENCHMARK_COUNTED"


def rows() -> Iterator[Row]:
    """Driver and workers without votes to count; then three networks."""
    yield no_op()
    yield from many_shards()
    yield from long_job()
    for name, side, images, shard in (("cifar_resnet20", 32, 200, 5), ("resnet18", 224, 24, 1)):
        with tempfile.TemporaryDirectory(prefix="stn-bench-") as folder:
            yield estimated(name, spec_for(Path(folder), name, side, images, shard), SHORT_S)


# --- No votes to count ---------------------------------------------------------------------------------------------


def trivial() -> nn.Module:
    """A network whose answer costs nothing, on images of 2 x 2."""
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 10))


def no_op() -> Row:
    """Shards of one image, two draws: what a shard costs beside its votes."""
    with tempfile.TemporaryDirectory(prefix="stn-bench-") as name:
        folder = Path(name)
        sections = trivial_job(folder, NO_OP_SHARDS)
        certify(folder, sections)
        times = commits(folder)
        reduce_s = (folder / "run" / layout.CERTIFICATES).stat().st_mtime - times[-1]
    rate = (len(times) - 1) / (times[-1] - times[0])
    detail = f"{len(times)} shards, {WORKERS} actors, from first commit to last; reduced in {reduce_s:.1f} s"
    return single("certify: no-op shards committed", "a shard a second", rate, detail, "≥ 300")


def many_shards() -> Iterator[Row]:
    """The driver's memory, workers answering at once in its own process; and `stn certify` of a run that is done."""
    few, many = (tempfile.TemporaryDirectory(prefix="stn-bench-") for _ in range(2))
    with few as small, many as large:
        peaks = []
        for folder, shards in ((small, FEW_SHARDS), (large, MANY_SHARDS)):
            write(Path(folder), trivial_job(Path(folder), shards))
            peaks.append(alone(instantly, folder))
        mib = [found["peak"] * 1024 for found in peaks]
        each = (mib[1] - mib[0]) * 2**20 / (MANY_SHARDS - FEW_SHARDS)
        detail = f"{mib[1]:.0f} against {mib[0]:.0f} MiB, mostly libraries: {each:.0f} bytes a shard, reduce included"
        name = f"certify: driver's peak of memory at {MANY_SHARDS} shards"
        yield single(name, f"at {FEW_SHARDS}", peaks[1]["peak"] / peaks[0]["peak"], detail, "≤ 1.1")
        start = time.perf_counter()
        said = json.loads(certify_command(Path(large)))
        seconds = time.perf_counter() - start
        assert said["nothing_to_do"]
    name = f"certify again: {MANY_SHARDS} committed shards, nothing to do"
    yield single(name, "a second", seconds, "the whole process, a local folder", "≤ 10")


def instantly(folder: str) -> dict[str, Any]:
    """Certify by workers that commit recorded votes at once, in this process."""
    sections = json.loads(Path(folder, "spec.yaml").read_text())
    certified = certify_run(validate(sections, "benchmark"), hire=committing)
    assert certified.complete
    return {}


class Committing(Instant):
    """``dispatch.Pool`` of workers that have committed a shard as soon as it is given to them."""

    def __init__(self, job: CountJob) -> None:
        super().__init__(50)
        self._job, self._folder = job, Path(job.store.run)
        self._votes = population(10, NO_DRAWS)

    def submit(self, worker: int, shard: int) -> None:
        indices = np.array(self._job.shard_indices(shard))
        table = votes_table(indices, indices % 10, self._votes, NO_DRAWS)
        content = counts_table.encode(table, {**self._job.provenance, "shard": shard, "device": "none"})
        # Without the store's waiting for the disk, which is not what is measured.
        path = self._folder / layout.counts(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        super().submit(worker, shard)


@contextmanager
def committing(
    make_job: Callable[[Device], CountJob], task: Task, resources: Resources, warn: Callable[[str], None]
) -> Iterator[Crew]:
    yield Crew(Committing(make_job("cpu")), WORKERS)


# --- Votes to count ------------------------------------------------------------------------------------------------


def long_job() -> Iterator[Row]:
    """A job of more than five minutes on the paper's MNIST network: its wall time, its estimate; and its speed-up."""
    with tempfile.TemporaryDirectory(prefix="stn-bench-") as name:
        folder = Path(name)
        sections = spec_for(folder, "mnist", 28, 1000, 4)
        counted = folder / "counted"
        counted.mkdir()
        predicted = planned(folder, sized(folder, sections, LONG_S))
        start = time.perf_counter()
        run([sys.executable, "-c", f"from benchmarks.jobs import timed_certify; timed_certify({name!r})"])
        seconds = time.perf_counter() - start
        counting_s = sum(float(line) for file in counted.iterdir() for line in file.read_text().split())
        detail = f"{seconds:.0f} s as a whole process; count_votes took {counting_s:.0f} s inside the workers, together"
        name = "certify: wall time of the paper's MNIST network"
        yield single(name, f"counting / {WORKERS} workers", seconds * WORKERS / counting_s, detail, "≤ 1.05")
        yield estimate_row("mnist", predicted, seconds)
        two = pace(folder, WORKERS)
        part = {**sections, "resources": {**sections["resources"], "actors": 1}}
        part["dataset"] = {**sections["dataset"], "limit": max(40, round(1000 * PART_S / LONG_S / WORKERS))}
        part["store"] = {"run": str(folder / "part")}
        certify(folder, part)
        one = pace(folder, 1, "part")
    detail = (
        f"{two:.2f} and {one:.2f} shards/s, one thread each, from each worker's first commit on; the one counts a part"
    )
    yield single(f"certify: {WORKERS} workers", "one worker", two / one, detail, "≥ 1.9")


def timed_certify(folder: str) -> None:
    """`stn certify` with workers that leave how long they counted, s, in a file each."""
    os.environ[COUNTED] = f"{folder}/counted"
    vars(actors)["CountingActor"] = TimedActor
    from orchestrator.cli import main

    main(["certify", f"{folder}/spec.yaml", "--json"])


class TimedActor(CountingActor):
    """A counting actor that notes the seconds of each call of ``count_votes``."""

    def __init__(self, job: CountJob) -> None:
        vars(counting)["count_votes"] = timed(counting.count_votes, Path(os.environ[COUNTED], str(os.getpid())))
        super().__init__(job)


def timed(work: Callable[..., Any], file: Path) -> Callable[..., Any]:
    @functools.wraps(work)
    def call(*values: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = work(*values, **named)
        with file.open("a") as lines:
            lines.write(f"{time.perf_counter() - start}\n")
        return result

    return call


def estimated(name: str, sections: dict[str, Any], seconds: float) -> Row:
    """A job's estimate against the job."""
    folder = Path(sections["store"]["run"]).parent
    predicted = planned(folder, sized(folder, sections, seconds))
    start = time.perf_counter()
    certify_command(folder)
    return estimate_row(name, predicted, time.perf_counter() - start)


def estimate_row(name: str, predicted: float, seconds: float) -> Row:
    detail = f"{predicted:.0f} s and {seconds:.0f} s"
    return single(f"plan: estimate for {name}", "what certify took", predicted / seconds, detail, "0.8 - 1.2")


def sized(folder: Path, sections: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The job with as many draws as take about so long here; written down, and put in place of the one given."""
    write(folder, sections)
    values = json.loads(run([*STN, "plan", str(folder / "spec.yaml"), "--json"]))
    draws = sections["sampling"]["draws"] * seconds / values["estimated_counting_seconds"]
    sections["sampling"]["draws"] = max(1, round(draws))
    return sections


def planned(folder: Path, sections: dict[str, Any]) -> float:
    """`stn plan`'s seconds."""
    write(folder, sections)
    seconds: float = json.loads(run([*STN, "plan", str(folder / "spec.yaml"), "--json"]))["estimated_seconds"]
    return seconds


def pace(folder: Path, workers: int, name: str = "run") -> float:
    """Shards a second, from the first commit of each worker to the last commit of all."""
    times = commits(folder, name)[workers - 1 :]
    return (len(times) - 1) / (times[-1] - times[0])


# --- Jobs and runs -------------------------------------------------------------------------------------------------

STN = (sys.executable, "-m", "orchestrator.cli")


def write(folder: Path, sections: dict[str, Any]) -> None:
    """The folder's spec. JSON is YAML."""
    (folder / "spec.yaml").write_text(json.dumps(sections))


def certify(folder: Path, sections: dict[str, Any]) -> None:
    """A spec's job, by the command."""
    write(folder, sections)
    certify_command(folder)


def certify_command(folder: Path) -> str:
    """What `stn certify` says of the folder's spec."""
    return run([*STN, "certify", str(folder / "spec.yaml"), "--json"])


def commits(folder: Path, name: str = "run") -> list[float]:
    """When each shard was committed, s, ascending."""
    return sorted(stored.modified for stored in LocalStore(folder / name).list(layout.COUNTS))


def trivial_job(folder: Path, images: int) -> dict[str, Any]:
    """One image of 2 x 2 a shard, hardly any draws."""
    write_mnist(folder, images, 2)
    torch.save(trivial().state_dict(), folder / "model.pt")
    return {
        **sections_for(folder, "benchmarks.jobs:trivial", {"kind": "mnist", "path": str(folder), "split": "test"}),
        "sampling": {"draws": NO_DRAWS},
        "resources": {"actors": WORKERS, "shard_size": 1, "batch_size": 16},
    }


def spec_for(folder: Path, name: str, side: int, images: int, shard: int) -> dict[str, Any]:
    """A network with random weights on random images, with draws enough for a first estimate."""
    if side == 28:
        write_mnist(folder, images, side)
        dataset = {"kind": "mnist", "path": str(folder), "split": "test"}
    else:
        write_jpegs(folder / "images", images, side)
        dataset = {"kind": "image_folder", "path": str(folder / "images")}
    classes = 1000 if name == "resnet18" else 10
    torch.manual_seed(0)
    torch.save(build_network(name, classes).state_dict(), folder / "model.pt")
    sections = sections_for(folder, name, dataset)
    sections["model"]["num_classes"] = classes
    return {
        **sections,
        "sampling": {"draws": 1000},
        "resources": {"actors": WORKERS, "shard_size": shard},
    }


def sections_for(folder: Path, model: str, dataset: dict[str, Any]) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "model": {"name": model, "checkpoint": str(folder / "model.pt")},
        "noise": {"sigma": 0.5},
        "radii": {"stop": 2, "step": 0.05},
        "store": {"run": str(folder / "run")},
    }


def write_mnist(folder: Path, images: int, side: int) -> None:
    """Random images in MNIST's files, of any size."""
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (images, side, side), dtype=np.uint8)
    header = struct.pack(">4i", 0x0803, images, side, side)
    (raw / "t10k-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    labels = (np.arange(images) % 10).astype(np.uint8)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x0801, images) + labels.tobytes())


def write_jpegs(folder: Path, images: int, side: int) -> None:
    """Random images in ten class folders."""
    rng = np.random.default_rng(0)
    for number in range(images):
        path = folder / f"{number % 10}" / f"{number:05d}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)

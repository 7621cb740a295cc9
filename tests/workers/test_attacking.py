"""Attacks on a shard's images: the rows that come of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from orchestrator.planning.resolve import resolve
from orchestrator.spec import validate
from stn_core.votes import count_votes
from tests.networks import tiny
from tests.orchestrator.runs import digits_spec
from workers import attempts_table, counts_table
from workers.attacking import AttackJob, attack_images
from workers.counting import Shard, read_images

CPU = torch.device("cpu")

PGD = {"kind": "pgd", "norm": "l2", "sizes": [0.5, 2.0], "steps": 4, "draws": 4}


def job_of(attacks: dict[str, Any], **sections: Any) -> tuple[AttackJob, Any]:
    attack = {"draws": 40, "seed": 3, "keep": 2, "attacks": attacks}
    spec = validate(digits_spec(attack=attack, **sections), "spec")
    assert spec.attack is not None
    resolved = resolve(spec)
    job = AttackJob(
        count=resolved.plan.job("unused", device="cpu"),
        asked=spec.attack,
        names=tuple(spec.attack.attacks),
        shards=resolved.plan.shards,
        sources_sha256={},
        kept=frozenset(resolved.plan.indices[: spec.attack.keep]),
        provenance={},
    )
    return job, resolved


def attempts_of(job: AttackJob, resolved: Any, name: str, shard: int = 0, source: Any = None) -> pa.Table:
    images = read_images(job.count, job.count.shard_indices(shard), resolved.images)
    model = resolved.model.eval().requires_grad_(False)
    return attack_images(job, name, images, model, source or model, CPU).table


def test_a_row_for_each_image_and_size_the_clean_one_first() -> None:
    job, resolved = job_of({"pgd": PGD})
    table = attempts_of(job, resolved, "pgd")
    assert table.schema.equals(attempts_table.SCHEMA)
    assert table["index"].to_pylist() == [index for index in range(8) for _ in range(3)]
    assert table["size"].to_pylist() == [0.0, 0.5, 2.0] * 8
    assert set(table["draws"].to_pylist()) == {40}
    votes = counts_table.dense(table["votes"], 10).sum(axis=1)
    assert np.array_equal(votes, np.full(24, 40))


@pytest.mark.parametrize(
    "attack",
    [
        PGD,
        {**PGD, "norm": "linf", "sizes": [0.05, 0.2]},
        {"kind": "cw", "sizes": [0.5, 2.0], "steps": 4, "searches": 2, "draws": 4},
        {"kind": "square", "norm": "linf", "sizes": [0.1], "queries": 3, "draws": 2},
        {"kind": "square", "norm": "l2", "sizes": [1.0], "queries": 3, "draws": 2},
    ],
    ids=["pgd l2", "pgd linf", "cw", "square linf", "square l2"],
)
@pytest.mark.parametrize("noise", [{"sigma": 0.2}, {"sigma": 0.2, "sampler": "sound"}, {"kind": "none"}])
def test_attacked_images_lie_within_their_sizes(attack: dict[str, Any], noise: dict[str, Any]) -> None:
    sampling = {"draws": 1, "seed": 1} if noise.get("kind") == "none" else {"draws": 64, "seed": 1}
    job, resolved = job_of({"one": attack}, noise=noise, sampling=sampling)
    table = attempts_of(job, resolved, "one")
    norm = attack.get("norm", "l2")
    distance, size = table[norm].to_numpy(), table["size"].to_numpy()
    assert (distance <= size * (1 + 1e-5)).all()
    assert (distance[size > 0] > 0).any()


def test_kept_pixels_are_those_whose_distances_and_votes_are_told() -> None:
    job, resolved = job_of({"pgd": PGD})
    table = attempts_of(job, resolved, "pgd")
    kept = table.filter(pc.is_valid(table["pixels"]))
    assert kept["index"].to_pylist() == [0, 0, 0, 1, 1, 1]
    images = np.stack([np.frombuffer(pixels, "<f4").reshape(1, 28, 28) for pixels in kept["pixels"].to_pylist()])
    clean = np.stack([resolved.images.read(index) for index in (0, 0, 0, 1, 1, 1)]) / np.float32(255)
    apart = (images.astype(np.float64) - clean).reshape(6, -1)
    for norm, order in (("l1", 1), ("l2", 2), ("linf", np.inf)):
        assert kept[norm].to_numpy() == pytest.approx(np.linalg.norm(apart, ord=order, axis=1), rel=1e-6, abs=1e-9)
    tally = count_votes(
        tiny(),
        images,
        noise=job.count.noise.build(),
        draws=40,
        num_classes=10,
        seed=3,
        keys=kept["key"].to_pylist(),
        phase="prediction",
    )
    assert np.array_equal(counts_table.dense(kept["votes"], 10), tally.votes)


def test_sound_noise_sees_attacked_images_of_eight_bits() -> None:
    job, resolved = job_of({"pgd": PGD}, noise={"sigma": 0.2, "sampler": "sound"})
    kept = attempts_of(job, resolved, "pgd")["pixels"].drop_null().to_pylist()
    levels = np.stack([np.frombuffer(pixels, "<f4") for pixels in kept]) * 255
    assert np.abs(levels - np.round(levels)).max() < 1e-4
    # Distances are those of the levels, to the last digits: radii are held to them.
    job, resolved = job_of({"linf": {**PGD, "norm": "linf", "sizes": [4 / 255]}}, noise=job.count.noise.model_dump())
    table = attempts_of(job, resolved, "linf")
    steps = 255 * table["linf"].to_numpy()
    assert steps.max() == pytest.approx(4, rel=1e-12)
    assert steps == pytest.approx(np.round(steps), rel=1e-12)


def test_what_becomes_of_an_image_does_not_depend_on_its_shard() -> None:
    job, resolved = job_of({"pgd": PGD})
    whole = attempts_of(job, resolved, "pgd")
    images = read_images(job.count, [5], resolved.images)
    model = resolved.model.eval().requires_grad_(False)
    alone = attack_images(job, "pgd", images, model, model, CPU).table
    drop = ["pixels"]
    assert alone.drop_columns(drop).equals(whole.filter(pc.equal(whole["index"], 5)).drop_columns(drop))


def test_an_image_that_cannot_be_read_has_rows_with_its_error() -> None:
    job, resolved = job_of({"pgd": PGD})
    good = read_images(job.count, [0, 1], resolved.images)
    model = resolved.model.eval().requires_grad_(False)
    broken = Shard(good.indices, good.keys, good.labels, ["undecodable", None], good.pixels[1:])
    table = attack_images(job, "pgd", broken, model, model, CPU).table
    assert table["error"].to_pylist() == ["undecodable"] * 3 + [None] * 3
    assert table["draws"].to_pylist() == [0] * 3 + [40] * 3
    assert (
        table.slice(3)
        .drop_columns(["pixels"])
        .equals(attempts_of(job, resolved, "pgd").slice(3, 3).drop_columns(["pixels"]))
    )
    nothing = Shard(good.indices, good.keys, good.labels, ["one", "two"], [])
    empty = attack_images(job, "pgd", nothing, model, model, CPU).table
    assert empty["draws"].to_pylist() == [0] * 6


def test_a_transfer_follows_the_source_and_is_scored_on_the_classifier() -> None:
    attack = {**PGD, "source": {"name": "tests.networks:tiny"}}
    job, resolved = job_of({"own": {**PGD, "noise": {"kind": "none"}, "draws": 1}, "foreign": attack})
    own = attempts_of(job, resolved, "own")
    same = attempts_of(job, resolved, "foreign")  # the source is the network itself, seen without noise
    assert same["l1"].equals(own["l1"])
    assert same["votes"].equals(own["votes"])

    class Upside(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = tiny()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return -self.network(images)

    other = attempts_of(job, resolved, "foreign", source=Upside().eval().requires_grad_(False))
    assert not other["l1"].equals(own["l1"])


def test_numbers_of_work_are_attacks_and_shards() -> None:
    job, _ = job_of({"a": PGD, "b": PGD})
    numbers = [job.number(name, shard) for name in ("a", "b") for shard in range(job.shards)]
    assert numbers == list(range(2 * job.shards))
    assert [job.work(number) for number in numbers] == [(name, s) for name in ("a", "b") for s in range(job.shards)]


def test_attempts_come_back_as_they_were_written_and_damage_is_seen() -> None:
    job, resolved = job_of({"pgd": PGD})
    table = attempts_of(job, resolved, "pgd")
    content = attempts_table.encode(table, {"shard": 0})
    assert content == attempts_table.encode(table, {"shard": 0})
    read, provenance = attempts_table.decode(content)
    assert read.equals(table)
    assert provenance["shard"] == 0
    moved = table.set_column(table.schema.get_field_index("l2"), table.schema.field("l2"), pc.add(table["l2"], 1e-9))
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(moved.replace_schema_metadata(pq.read_schema(pa.BufferReader(content)).metadata), sink)
    with pytest.raises(ValueError, match="sha-256"):
        attempts_table.decode(sink.getvalue().to_pybytes())


def test_gradients_of_float16_do_not_vanish() -> None:
    """In float16 those of a network this sure are zero, and an attack would stay where it began."""

    class Sure(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = tiny()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = 300 * self.network(images)
            return logits

    job, resolved = job_of({"pgd": {**PGD, "loss": "margin"}}, resources={"shard_size": 8, "precision": "float16"})
    exact, _ = job_of({"pgd": {**PGD, "loss": "margin"}})
    sure = Sure().eval().requires_grad_(False)
    table = attempts_of(job, resolved, "pgd", source=sure)
    assert table["l2"].equals(attempts_of(exact, resolved, "pgd", source=sure)["l2"])

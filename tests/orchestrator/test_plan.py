from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import RunError
from orchestrator.plan import SCHEMA_VERSION, Plan, difference
from orchestrator.spec import Spec, validate
from tests.orchestrator.runs import digits_spec

PLAN = Plan(
    spec=validate(digits_spec(), "spec"),
    dataset_size=500,
    num_classes=10,
    image_shape=(1, 28, 28),
    shard_size=8,
    model_sha256="m" * 64,
    dataset_sha256="d" * 64,
    code_sha256="c" * 64,
    versions={"python": "3.11", "torch": "2"},
)


def with_spec(plan: Plan, **sections: Any) -> Plan:
    """The plan with whole sections of its spec replaced."""
    return dataclasses.replace(plan, spec=validate({**plan.spec.model_dump(), **sections}, "spec"))


# --- On disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"dataset": {"kind": "parquet", "path": "/data", "resize": 256, "crop": 224, "every": 100}},
        {"model": {"name": "mnist", "checkpoint": "/m.pt", "normalization": {"mean": [0.1], "std": [0.3]}}},
        {"noise": {"sigma": 0.1 + 0.2}, "radii": {"stop": 1, "step": 0.1}},
        {"resources": {"actors": 4, "gpus_per_actor": 0.5, "batch_size": 64, "precision": "bfloat16"}},
        {"training": {"dataset": {"kind": "digits", "split": "train"}, "gamma": 2}, "certificates": ["renyi"]},
        {"sampling": {"draws": 100_000, "selection_draws": 100, "seed": 2**63 - 1}},
    ],
    ids=lambda sections: "-".join(sections) or "plain",
)
def test_a_plan_survives_json(sections: dict[str, Any]) -> None:
    plan = with_spec(PLAN, **sections)
    found = Plan.from_json(plan.to_json(), "plan")
    assert found == plan
    assert found.identity() == plan.identity()
    assert found.to_json() == plan.to_json()


def test_the_file_is_readable_json_with_the_figures_people_ask_for() -> None:
    content = json.loads(PLAN.to_json())
    assert (content["images"], content["shards"], content["shard_size"]) == (20, 3, 8)
    assert content["spec"]["noise"]["sigma"] == 0.2
    assert content["schema_version"] == SCHEMA_VERSION


def edited(change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = json.loads(PLAN.to_json())
    change(content)
    return json.dumps(content).encode()


def test_a_newer_plan_is_refused_with_its_version() -> None:
    content = edited(lambda plan: plan.update(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(RunError, match=rf"run/plan\.json .*newer version \(schema {SCHEMA_VERSION + 1}\)"):
        Plan.from_json(content, "run/plan.json")


def test_a_field_added_by_a_later_writer_of_the_same_version_is_left_out() -> None:
    assert Plan.from_json(edited(lambda plan: plan.update(comment="hello")), "plan") == PLAN


DAMAGED = {
    "empty": b"",
    "half a brace": b"{",
    "no text": b"\xff\xfe",
    "a list": b"[]",
    "a number": b"3",
    "nothing in it": b"{}",
    "cut short": PLAN.to_json()[:-10],
    "no spec": edited(lambda plan: plan.pop("spec")),
    "no shape": edited(lambda plan: plan.pop("image_shape")),
    "no fingerprint": edited(lambda plan: plan.pop("dataset_sha256")),
    "no noise": edited(lambda plan: plan["spec"].pop("noise")),
    "a bad sigma": edited(lambda plan: plan["spec"]["noise"].update(sigma=-1)),
    "a spec that is a list": edited(lambda plan: plan.update(spec=[])),
    "a version in quotes": edited(lambda plan: plan.update(schema_version="1")),
    "no version": edited(lambda plan: plan.update(schema_version=None)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_plan_is_refused_by_name_in_one_line(damage: str) -> None:
    with pytest.raises(RunError, match="damaged") as caught:
        Plan.from_json(DAMAGED[damage], "run/plan.json")
    assert str(caught.value).startswith("run/plan.json")
    assert len(str(caught.value).splitlines()) == 1


# --- Which runs are the same ---------------------------------------------------------------------------------------


def test_a_plan_does_not_differ_from_itself() -> None:
    assert difference(PLAN, PLAN) == []


@pytest.mark.parametrize(
    ("asked", "keys"),
    [
        (with_spec(PLAN, noise={"sigma": 0.3}), ["noise.sigma"]),
        (with_spec(PLAN, sampling={"draws": 65, "selection_draws": 16, "seed": 1}), ["sampling.draws"]),
        (with_spec(PLAN, sampling={"draws": 64, "selection_draws": 17, "seed": 1}), ["sampling.selection_draws"]),
        (with_spec(PLAN, sampling={"draws": 64, "selection_draws": 16, "seed": 2}), ["sampling.seed"]),
        (with_spec(PLAN, sampling={"draws": 5}), ["sampling.draws", "sampling.seed", "sampling.selection_draws"]),
        (with_spec(PLAN, dataset={"kind": "digits", "limit": 21}), ["dataset.limit"]),
        (with_spec(PLAN, dataset={"kind": "digits", "limit": 20, "every": 2}), ["dataset.every"]),
        (dataclasses.replace(PLAN, dataset_sha256="e" * 64), ["dataset.fingerprint"]),
        (dataclasses.replace(PLAN, model_sha256="n" * 64), ["model.weights"]),
        (with_spec(PLAN, model={"name": "tests.networks:nan"}), ["model.name"]),
        (
            with_spec(PLAN, model={"name": "tests.networks:tiny", "normalization": {"mean": [0.5], "std": [1]}}),
            ["model.normalization.mean", "model.normalization.std"],
        ),
        (dataclasses.replace(PLAN, num_classes=11), ["model.num_classes"]),
        (dataclasses.replace(PLAN, image_shape=(1, 32, 32)), ["image_shape"]),
        (dataclasses.replace(PLAN, shard_size=9), ["resources.shard_size"]),
        (with_spec(PLAN, resources={"precision": "float16"}), ["resources.precision"]),
        (dataclasses.replace(PLAN, noise_version=PLAN.noise_version + 1), ["noise_version"]),
    ],
)
def test_a_difference_names_the_changed_keys_and_no_others(asked: Plan, keys: list[str]) -> None:
    lines = difference(PLAN, asked)
    assert [line.split(":", 1)[0] for line in lines] == keys
    assert [line.split(":", 1)[0] for line in difference(asked, PLAN)] == keys


def test_a_difference_shows_both_values() -> None:
    assert difference(PLAN, with_spec(PLAN, noise={"sigma": 0.3})) == ["noise.sigma: the run has 0.2, asked 0.3"]


@pytest.mark.parametrize(
    "asked",
    [
        with_spec(PLAN, confidence={"protocol": "label", "alpha": 0.001}),
        with_spec(PLAN, radii=[1, 2]),
        with_spec(PLAN, certificates=["renyi"]),
        with_spec(PLAN, store={"run": "elsewhere"}),
        with_spec(PLAN, resources={"actors": 9, "threads_per_actor": 2, "max_attempts": 7, "gpus_per_actor": 0}),
        with_spec(PLAN, model={"name": "tests.networks:tiny", "checkpoint": "/elsewhere/model.pt"}),
        with_spec(PLAN, training={"dataset": {"kind": "digits"}}),
        dataclasses.replace(PLAN, versions={"python": "3.13"}),
        dataclasses.replace(PLAN, code_sha256="x" * 64),
    ],
    ids=["confidence", "radii", "certificates", "store", "actors", "checkpoint path", "training", "versions", "code"],
)
def test_what_does_not_decide_the_votes_is_no_difference(asked: Plan) -> None:
    assert asked != PLAN
    assert difference(PLAN, asked) == []


def test_where_the_data_lies_is_no_difference() -> None:
    here, there = (with_spec(PLAN, dataset={"kind": "mnist", "path": path}) for path in ("/here", "/there"))
    assert difference(here, there) == []


def test_a_plan_read_back_is_no_difference() -> None:
    plan = with_spec(PLAN, model={"name": "mnist", "normalization": {"mean": [0.1], "std": [0.3]}})
    assert difference(Plan.from_json(plan.to_json(), "plan"), plan) == []


# --- Shards --------------------------------------------------------------------------------------------------------


@given(
    images=st.integers(1, 500),
    shard_size=st.integers(1, 600),
    every=st.integers(1, 40),
    limit=st.none() | st.integers(1, 600),
)
def test_shards_cover_every_selected_image_once(images: int, shard_size: int, every: int, limit: int | None) -> None:
    plan = dataclasses.replace(
        PLAN,
        spec=PLAN.spec.model_copy(
            update={"dataset": PLAN.spec.dataset.model_copy(update={"every": every, "limit": limit})}
        ),
        dataset_size=images,
        shard_size=shard_size,
    )
    job = plan.job("run", device="cpu")
    shards = [list(job.shard_indices(shard)) for shard in range(plan.shards)]
    assert [index for shard in shards for index in shard] == list(range(images))[::every][:limit]
    assert [len(shard) for shard in shards] == [plan.shard_images(shard) for shard in range(plan.shards)]
    assert all(0 < len(shard) <= shard_size for shard in shards)
    assert plan.images == sum(map(len, shards))
    assert plan.passes == plan.images * 80


def test_a_job_is_what_the_plan_says() -> None:
    plan = with_spec(PLAN, resources={"batch_size": 32, "precision": "bfloat16", "threads_per_actor": 3})
    job = plan.job("somewhere", device="cpu")
    assert (job.run, job.num_classes, job.image_shape) == ("somewhere", 10, (1, 28, 28))
    assert (job.batch_size, job.precision, job.threads) == (32, "bfloat16", 3)
    assert PLAN.job("x", device="cpu").batch_size is None
    assert isinstance(plan.spec, Spec)
    assert job.provenance["identity"] == plan.identity()
    json.dumps(dict(job.provenance))

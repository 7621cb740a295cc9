from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import RunError
from orchestrator.planning.plans import SCHEMA_VERSION, Plan, difference
from orchestrator.spec import Spec, validate
from tests.orchestrator.runs import NOISES, digits_spec

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
    """The plan with whole sections of its spec replaced; None leaves one to its default."""
    content = {**plan.spec.model_dump(), **sections}
    kept = {name: value for name, value in content.items() if name == "training" or value is not None}
    return dataclasses.replace(plan, spec=validate(kept, "spec"))


def under(name: str) -> Plan:
    """The plan under a kind of noise."""
    return with_spec(PLAN, **NOISES[name], certificates=None)


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
        {"confidence": {"interval": "randomised", "beta": 0.2}},
        *({**sections, "certificates": None} for sections in NOISES.values()),
    ],
    ids=lambda sections: "-".join(sections) or "plain",
)
def test_a_plan_survives_json(sections: dict[str, Any]) -> None:
    plan = with_spec(PLAN, **sections)
    found = Plan.from_json(plan.to_json(), "plan")
    assert found.spec.noise.build() == plan.spec.noise.build()
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
        with_spec(PLAN, confidence={"interval": "randomised", "beta": 0.5}),
        with_spec(PLAN, radii=[1, 2]),
        with_spec(PLAN, certificates=["renyi"]),
        with_spec(PLAN, store={"run": "elsewhere"}),
        with_spec(PLAN, resources={"actors": 9, "threads_per_actor": 2, "max_attempts": 7, "gpus_per_actor": 0}),
        with_spec(PLAN, model={"name": "tests.networks:tiny", "checkpoint": "/elsewhere/model.pt"}),
        with_spec(PLAN, training={"dataset": {"kind": "digits"}}),
        dataclasses.replace(PLAN, versions={"python": "3.13"}),
        dataclasses.replace(PLAN, code_sha256="x" * 64),
    ],
    ids=[
        "confidence",
        "interval",
        "radii",
        "certificates",
        "store",
        "actors",
        "checkpoint path",
        "training",
        "versions",
        "code",
    ],
)
def test_what_does_not_decide_the_votes_is_no_difference(asked: Plan) -> None:
    assert asked != PLAN
    assert difference(PLAN, asked) == []


def of_the_version_before() -> bytes:
    """plan.json of ``PLAN`` as it was written before noise had kinds and samplers."""

    def older(plan: dict[str, Any]) -> None:
        plan["spec"]["noise"] = {"kind": "gaussian", "sigma": 0.2}
        plan["spec"]["confidence"] = {"protocol": "paper", "alpha": 0.05}
        plan["spec"]["certificates"] = ["renyi", "neyman_pearson_one_class", "neyman_pearson_two_class"]

    return edited(older)


#: Plain Gaussian noise, as identities in the tables of the version before have it.
IDENTITY_BEFORE = {
    "noise.kind": "gaussian",
    "noise.sigma": 0.2,
    "sampling.draws": 64,
    "sampling.selection_draws": 16,
    "sampling.seed": 1,
    "dataset.kind": "digits",
    "dataset.every": 1,
    "dataset.limit": 20,
    "dataset.fingerprint": "d" * 64,
    "model.name": "tests.networks:tiny",
    "model.weights": "m" * 64,
    "model.normalization": None,
    "model.num_classes": 10,
    "resources.precision": "float32",
    "resources.shard_size": 8,
    "noise_version": 1,
    "image_shape": [1, 28, 28],
}


def test_a_plain_gaussian_run_of_the_version_before_goes_on() -> None:
    stored = Plan.from_json(of_the_version_before(), "plan")
    assert stored.identity() == PLAN.identity() == IDENTITY_BEFORE
    assert difference(stored, PLAN) == []
    assert difference(stored, with_spec(PLAN, noise={"kind": "gaussian", "sigma": 0.2, "sampler": "plain"})) == []
    assert json.loads(json.dumps(PLAN.identity())) == PLAN.identity()


def test_a_sound_run_is_not_a_plain_one() -> None:
    sound = under("sound")
    assert sound.identity() == {**IDENTITY_BEFORE, "noise.sampler": "sound"}
    for plain in (PLAN, Plan.from_json(of_the_version_before(), "plan")):
        assert difference(plain, sound) == ["noise.sampler: the run has None, asked 'sound'"]
        assert [line.split(":")[0] for line in difference(sound, plain)] == ["noise.sampler"]


def test_no_two_kinds_of_noise_are_the_same_run() -> None:
    for one in NOISES:
        for other in NOISES:
            assert (difference(under(one), under(other)) == []) == (one == other)
    sampling = {"draws": 64, "selection_draws": 16, "seed": 1}
    laplace, uniform = (with_spec(PLAN, noise={"kind": kind, "scale": 0.1}, certificates=None) for kind in KINDS)
    assert difference(laplace, uniform) == ["noise.kind: the run has 'laplace', asked 'uniform'"]
    wider = with_spec(laplace, noise={"kind": "laplace", "scale": 0.2}, sampling=sampling)
    assert difference(laplace, wider) == ["noise.scale: the run has 0.1, asked 0.2"]


KINDS = ("laplace", "uniform")


def test_where_the_data_lies_is_no_difference() -> None:
    here, there = (with_spec(PLAN, dataset={"kind": "mnist", "path": path}) for path in ("/here", "/there"))
    assert difference(here, there) == []


def test_a_plan_read_back_is_no_difference() -> None:
    plan = with_spec(PLAN, model={"name": "mnist", "normalization": {"mean": [0.1], "std": [0.3]}})
    assert difference(Plan.from_json(plan.to_json(), "plan"), plan) == []


# --- Shards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISES)
def test_a_job_carries_the_noise(name: str) -> None:
    plan = under(name)
    assert plan.job("run", device="cpu").noise == plan.spec.noise
    assert plan.passes == 20 * (204 if name == "splitting" else 80)


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
    assert (job.store.run, job.num_classes, job.image_shape) == ("somewhere", 10, (1, 28, 28))
    assert (job.batch_size, job.precision, job.threads) == (32, "bfloat16", 3)
    assert PLAN.job("x", device="cpu").batch_size is None
    assert isinstance(plan.spec, Spec)
    assert job.provenance["identity"] == plan.identity()
    json.dumps(dict(job.provenance))


def test_images_cut_out_otherwise_are_told_by_what_cuts_them() -> None:
    def plan(**cut: int) -> Plan:
        dataset = {"kind": "image_folder", "path": "x", **cut}
        spec = validate({**PLAN.spec.model_dump(mode="json"), "dataset": dataset}, "spec")
        return dataclasses.replace(PLAN, spec=spec, dataset_sha256=str(cut))

    assert difference(plan(resize=256, crop=224), plan(resize=232, crop=224)) == [
        "dataset.resize: the run has 256, asked 232"
    ]

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from orchestrator.errors import SpecError
from orchestrator.planning.resolve import Resolved, code_sha256, resolve
from orchestrator.spec import validate
from stn_core.models import build_network, declared, weights_sha256
from tests.networks import tiny
from tests.orchestrator.runs import MadeRun, digits_spec, mnist_spec, parquet_spec
from tests.workers.samples import cached_weights, encoded, noise_image, write_folder, write_parquet
from workers.settings import Normalization
from workers.versions import versions


def resolved(spec: dict[str, Any]) -> Resolved:
    return resolve(validate(spec, "spec"))


def refusal(spec: dict[str, Any]) -> str:
    """The message with which a valid spec cannot be carried out: one line."""
    with pytest.raises(SpecError) as caught:
        resolved(spec)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def digits(few_digits: Path) -> dict[str, Any]:
    """A spec of 20 digits that opens fast."""
    return mnist_spec(few_digits)


def images(path: Path, contents: list[bytes], labels: list[int] | None = None) -> Path:
    return write_parquet(path / "x.parquet", contents, labels or [number % 10 for number in range(len(contents))])


GOOD = [encoded(noise_image(seed)) for seed in range(10)]


# --- What fits -----------------------------------------------------------------------------------------------------


def test_a_plan_of_digits_and_a_network_holds_their_facts(made: MadeRun) -> None:
    plan = made.plan
    assert (plan.dataset_size, plan.images, plan.num_classes) == (25, 20, 10)
    assert (plan.image_shape, plan.shard_size, plan.shards) == ((1, 28, 28), 8, 3)
    assert plan.model_sha256 == weights_sha256(tiny())
    assert len(plan.dataset_sha256) == 64
    assert set(plan.versions) >= {"python", "stn", "torch", "numpy"}


def test_the_packaged_digits_resolve() -> None:
    plan = resolved(digits_spec()).plan
    assert (plan.dataset_size, plan.images, plan.num_classes, plan.image_shape) == (500, 20, 10, (1, 28, 28))


def test_resolving_twice_gives_the_same_plan(digits: dict[str, Any]) -> None:
    assert resolved(digits).plan == resolved(digits).plan


def test_the_model_votes_as_the_plan_says(digits: dict[str, Any]) -> None:
    found = resolved(digits)
    image = torch.from_numpy(found.images.read(found.sample)).float()[None] / 255
    assert torch.equal(found.model(image), tiny()(image))


@pytest.mark.parametrize(("draws", "selection", "size"), [(100, 0, 64), (900, 100, 10), (9_999, 0, 1), (10**6, 10, 1)])
def test_an_automatic_shard_is_about_ten_thousand_passes(
    digits: dict[str, Any], draws: int, selection: int, size: int
) -> None:
    digits["sampling"] = {"draws": draws, "selection_draws": selection}
    digits["resources"] = {}
    assert resolved(digits).plan.shard_size == size


def test_paths_become_absolute(digits: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    relative = Path(digits["dataset"]["path"]).relative_to(tmp_path.anchor)
    (tmp_path / "data").symlink_to(Path(tmp_path.anchor) / relative)
    digits["dataset"]["path"] = "data"
    digits["model"] = {"name": "tests.networks:tiny", "checkpoint": "model.pt"}
    spec = resolved(digits).plan.spec
    assert spec.model.checkpoint == tmp_path / "model.pt"
    assert getattr(spec.dataset, "path", None) == tmp_path / "data"


def test_the_weights_fingerprint_is_the_checkpoints(digits: dict[str, Any], tmp_path: Path) -> None:
    network = build_network("mnist", 10)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "model.pt")
    digits["model"] = {"name": "mnist", "checkpoint": str(tmp_path / "model.pt")}
    assert resolved(digits).plan.model_sha256 == weights_sha256(network)


def test_the_first_images_may_be_broken(tmp_path: Path) -> None:
    found = resolved(parquet_spec(images(tmp_path, [b"junk", b"", *GOOD])))
    assert found.sample == 2
    assert found.plan.image_shape == (3, 28, 28)
    assert found.plan.images == 12


def test_a_model_may_have_more_classes_than_the_data_set(tmp_path: Path) -> None:
    path = images(tmp_path, GOOD[:3], [0, 1, 2])
    spec = parquet_spec(path)
    spec["model"]["num_classes"] = 10
    assert resolved(spec).plan.num_classes == 10


# --- What follows from the weights ---------------------------------------------------------------------------------


def squeezenet() -> torch.nn.Module:
    torch.manual_seed(2)
    return torchvision.models.squeezenet1_1(weights=None)


def thousand(path: Path) -> dict[str, Any]:
    """A spec of two images, labels of which tell that there are 1000 classes."""
    contents = [encoded(noise_image(seed, size=40)) for seed in range(2)]
    spec = parquet_spec(images(path, contents, [0, 999]))
    spec["model"] = {"name": "efficientnet_b0", "weights": "DEFAULT"}
    return spec


def test_weights_by_name_bring_normalisation_and_how_images_are_evaluated(torch_home: Path, tmp_path: Path) -> None:
    network = torchvision.models.efficientnet_b0(weights=None)
    cached_weights(torch_home, "efficientnet_b0", "IMAGENET1K_V1", network.state_dict())
    spec = thousand(tmp_path)
    plan = resolved(spec).plan
    stored = json.loads(plan.to_json())["spec"]
    assert stored["model"]["weights"] == "IMAGENET1K_V1"
    assert stored["model"]["normalization"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert {key: stored["dataset"][key] for key in ("resize", "crop", "interpolation")} == {
        "resize": 256,
        "crop": 224,
        "interpolation": "bicubic",
    }
    assert plan.image_shape == (3, 224, 224)
    # The same model from a file is the same run.
    path = next((torch_home / "hub/checkpoints").iterdir())
    spec["model"] = {
        "name": "efficientnet_b0",
        "checkpoint": str(path),
        "normalization": stored["model"]["normalization"],
    }
    spec["dataset"] |= {"resize": 256, "crop": 224, "interpolation": "bicubic"}
    assert resolved(spec).plan.identity() == plan.identity()
    # What the spec says about images is all that is done to them.
    spec = thousand(tmp_path)
    spec["dataset"]["crop"] = 40
    assert resolved(spec).plan.image_shape == (3, 40, 40)


def test_networks_differ_in_how_their_images_are_resized() -> None:
    facts = declared("efficientnet_b1", "IMAGENET1K_V1")
    assert (facts.resize, facts.crop, facts.interpolation) == (256, 240, "bicubic")
    facts = declared("efficientnet_b1", "DEFAULT")
    assert (facts.name, facts.resize, facts.crop, facts.interpolation) == ("IMAGENET1K_V2", 255, 240, "bilinear")


def test_a_folder_of_some_of_imagenets_classes_is_refused_before_it_is_miscounted(
    torch_home: Path, tmp_path: Path
) -> None:
    cached_weights(torch_home, "squeezenet1_1", "IMAGENET1K_V1", squeezenet().state_dict())
    for name, says in (
        ("n01443537", "model and dataset disagree about classes: the data set has 2 of ImageNet's 1000 classes"),
        ("other", "label 0 is 'a' in the data set, 'tench' to the model"),
    ):
        files = {f"{folder}/1.png": GOOD[0] for folder in (name, "n01514668" if name[0] == "n" else "a")}
        folder = {"kind": "image_folder", "path": str(write_folder(tmp_path / name, files)), "crop": 40}
        for model in ({}, {"num_classes": 1000}):
            spec = digits_spec(dataset=folder, model={"name": "squeezenet1_1", "weights": "DEFAULT", **model})
            assert says in refusal(spec)


def test_the_normalisation_of_a_known_checkpoint_is_the_plans(tmp_path: Path) -> None:
    state = {f"1.{name}": value for name, value in build_network("cifar_resnet20", 10).state_dict().items()}
    torch.save({"arch": "cifar_resnet20", "state_dict": state}, tmp_path / "w.pt")
    spec = parquet_spec(images(tmp_path, GOOD), model={"name": "cifar_resnet20", "checkpoint": str(tmp_path / "w.pt")})
    plan = resolved(spec).plan
    assert plan.spec.model.normalization == Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
    spec["model"]["normalization"] = plan.spec.model.normalization.model_dump()
    assert resolved(spec).plan == plan


def test_an_exported_program_is_planned_as_the_network_it_was(digits: dict[str, Any], tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        any_number = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(tiny().eval(), (torch.rand(2, 1, 28, 28),), dynamic_shapes=any_number)
        torch.export.save(program, tmp_path / "w.pt2")
    digits["model"] = {"name": "exported", "checkpoint": str(tmp_path / "w.pt2")}
    found = resolved(digits)
    pixels = torch.from_numpy(found.images.read(found.sample)).float()[None] / 255
    torch.testing.assert_close(found.model(pixels), tiny()(pixels))
    assert found.plan.model_sha256 != weights_sha256(tiny())
    spec = digits_spec(dataset={"kind": "parquet", "path": str(images(tmp_path, GOOD))}, model=digits["model"])
    assert "cannot take images of shape (3, 28, 28): the program was exported for images of 1 x 28 x 28" in refusal(
        spec
    )


# --- What does not -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar10", "resnet18"])
def test_a_named_network_without_weights_is_refused(digits: dict[str, Any], name: str) -> None:
    digits["model"] = {"name": name}
    message = refusal(digits)
    assert "model.checkpoint is missing" in message
    assert name in message


def test_a_missing_checkpoint_is_refused_with_what_to_do(digits: dict[str, Any], tmp_path: Path) -> None:
    digits["model"] = {"name": "mnist", "checkpoint": str(tmp_path / "model.pt")}
    assert "model.checkpoint" in refusal(digits)
    assert str(tmp_path / "model.pt") in refusal(digits)
    digits["training"] = {"dataset": {"kind": "digits"}}
    assert "stn train" in refusal(digits)


def test_another_networks_checkpoint_is_refused(digits: dict[str, Any], tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "model.pt")
    digits["model"] = {"name": "mnist", "checkpoint": str(tmp_path / "model.pt")}
    assert "another network" in refusal(digits)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mnits", "did you mean 'mnist'"),
        ("tests.networks:tyni", "tyni"),
        ("tests.nowhere:tiny", "tests.nowhere"),
        ("os:getcwd", "torch.nn.Module"),
        (":tiny", "':tiny'"),
        ("tests.networks:", "'tests.networks:'"),
        ("torch.nn:Linear", "torch.nn:Linear"),
        ("json:dumps", "json:dumps"),
    ],
)
def test_a_model_name_that_leads_to_no_network_is_refused(
    digits: dict[str, Any], tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    digits["model"] = {"name": name, "checkpoint": str(tmp_path / "model.pt")}
    assert says in refusal(digits)


def test_a_data_set_of_more_classes_than_the_model_is_refused(tmp_path: Path) -> None:
    message = refusal(parquet_spec(images(tmp_path, GOOD[:3], [0, 1, 11])))
    assert "(10,)" in message
    assert "12 classes" in message
    assert "model.num_classes" in message


def test_a_number_of_classes_that_the_model_has_not_is_refused(digits: dict[str, Any]) -> None:
    digits["model"]["num_classes"] = 7
    assert "model.num_classes" in refusal(digits)


def test_images_with_other_channels_than_the_models_are_refused(digits: dict[str, Any], tmp_path: Path) -> None:
    digits["model"] = {"name": "tests.networks:tiny_rgb"}
    assert "(1, 28, 28)" in refusal(digits)
    spec = parquet_spec(images(tmp_path, GOOD))
    spec["model"] = {"name": "tests.networks:tiny"}
    assert "(3, 28, 28)" in refusal(spec)


def test_images_of_another_size_than_the_models_are_refused(tmp_path: Path) -> None:
    path = images(tmp_path, GOOD)
    message = refusal(parquet_spec(path, dataset={"kind": "parquet", "path": str(path), "resize": 14}))
    assert "(3, 14, 14)" in message
    assert "model.name" in message


def test_a_normalisation_of_other_channels_than_the_images_is_refused(digits: dict[str, Any]) -> None:
    digits["model"]["normalization"] = {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}
    assert "model.normalization" in refusal(digits)


def test_a_network_that_returns_no_tensor_is_refused(digits: dict[str, Any]) -> None:
    digits["model"] = {"name": "tests.orchestrator.test_resolve:returns_a_tuple"}
    assert "model" in refusal(digits)


def test_images_that_are_all_broken_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", {f"{label}/1.png": b"junk" for label in range(10)})
    folder = {"kind": "image_folder", "path": str(tmp_path / "folder")}
    for spec in (parquet_spec(images(tmp_path, [b"junk"] * 10)), digits_spec(dataset=folder)):
        message = refusal(spec)
        assert "no images to certify" in message
        assert "decoded" in message


@pytest.mark.parametrize(
    "dataset", [{"kind": "image_folder"}, {"kind": "parquet"}, {"kind": "mnist"}], ids=lambda dataset: dataset["kind"]
)
def test_data_that_is_not_there_is_refused_naming_the_path(tmp_path: Path, dataset: dict[str, str]) -> None:
    path = str(tmp_path / "nowhere")
    assert path in refusal(digits_spec(dataset={**dataset, "path": path}))


def test_a_home_folder_that_is_nobodys_is_refused(digits: dict[str, Any]) -> None:
    digits["dataset"] = {"kind": "image_folder", "path": "~nobody-has-this-name/images"}
    assert "~nobody-has-this-name" in refusal(digits)


# --- Fingerprints --------------------------------------------------------------------------------------------------


def test_the_codes_fingerprint_is_stable_hexadecimal() -> None:
    assert code_sha256() == code_sha256()
    assert len(bytes.fromhex(code_sha256())) == hashlib.sha256().digest_size


def test_versions_are_of_what_votes_pass_through() -> None:
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert all(versions().values())


class _Tuple(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = tiny()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.network(images),)


def returns_a_tuple() -> torch.nn.Module:
    """A network as some libraries have them: its logits come in a tuple."""
    return _Tuple()


def test_an_imported_network_that_is_another_each_time_is_refused() -> None:
    with pytest.raises(
        SpecError, match=r"'tests\.networks:chance' has other weights each time: name a model\.checkpoint"
    ):
        resolved(digits_spec(model={"name": "tests.networks:chance"}))

"""Exported programs: the same logits as the network that was exported, and nothing in their files is run."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from stn_core.models import read_program, weights_sha256

ANY_NUMBER = ({0: torch.export.Dim("batch")},)


def export(network: nn.Module, images: torch.Tensor, shapes: Any = ANY_NUMBER) -> bytes:
    """What torch.export.save writes."""
    sink = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # PyTorch's, of its own code
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), sink)
    return sink.getvalue()


def small(channels: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten(), nn.Linear(36 * channels, 5)
    ).eval()


@pytest.fixture(scope="module")
def saved() -> bytes:
    return export(small(), torch.rand(2, 3, 8, 8))


def edited(content: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """An archive with one of its files changed."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(sink, "w") as new:
        for entry in old.namelist():
            held = old.read(entry)
            new.writestr(entry, change(held) if entry.endswith(name) else held)
    return sink.getvalue()


def with_json(content: bytes, name: str, change: Callable[[Any], None]) -> bytes:
    """An archive with one of its JSON files changed."""

    def changed(text: bytes) -> bytes:
        values = json.loads(text)
        change(values)
        return json.dumps(values).encode()

    return edited(content, name, changed)


def refusal(content: bytes) -> str:
    with pytest.raises(ValueError, match=r"w\.pt2") as caught:
        read_program(content, "w.pt2")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


class Numbers(nn.Module):
    """What torchvision's networks do beside layers: sizes, slices, splits, constants, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.shape[0]
        tokens = images.reshape(rows, 3, -1)[:, :, :8] * self.scale
        token = torch.zeros(rows, 1, 8, dtype=images.dtype, device=images.device) + torch.arange(8)
        mixed, _ = self.attention(*[torch.cat([token, tokens], dim=1)] * 3, need_weights=False)
        first, second = mixed.flatten(1).chunk(2, dim=1)
        largest, _ = torch.max(second, dim=1, keepdim=True)
        return torch.where(first > float("-inf"), first * largest, float("inf"))


@pytest.mark.parametrize(
    ("make", "side", "decomposed"),
    [
        (Numbers, 4, False),
        (Numbers, 4, True),
        (lambda: torchvision.models.squeezenet1_1(weights=None), 33, True),
        (lambda: torchvision.models.mobilenet_v3_small(weights=None), 32, False),
    ],
    ids=["numbers", "numbers decomposed", "squeezenet1_1 decomposed", "mobilenet_v3_small"],
)
def test_a_program_gives_the_networks_logits_for_any_number_of_images(
    make: Callable[[], nn.Module], side: int, decomposed: bool
) -> None:
    torch.manual_seed(1)
    network = make().eval()
    sink = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        program = torch.export.export(network, (torch.rand(2, 3, side, side),), dynamic_shapes=ANY_NUMBER)
        torch.export.save(program.run_decompositions() if decomposed else program, sink)
    read = read_program(sink.getvalue(), "w.pt2").eval()
    with torch.inference_mode():
        for rows in (1, 5):
            images = torch.rand(rows, 3, side, side)
            torch.testing.assert_close(read(images), network(images))


def test_a_program_may_be_read_again_and_moved(saved: bytes) -> None:
    first, second = read_program(saved, "w.pt2"), read_program(saved, "w.pt2")
    assert weights_sha256(first) == weights_sha256(second)
    assert first.train().eval().double()(torch.rand(3, 3, 8, 8).double()).dtype == torch.float64
    assert next(first.parameters()).device.type == "cpu"


def test_a_program_follows_its_images_to_another_device() -> None:
    # Sizes alone, but mixing devices is refused there as on a GPU.
    program = read_program(export(Numbers().eval(), torch.rand(2, 3, 4, 4)), "w.pt2").to("meta")
    logits = program(torch.rand(3, 3, 4, 4, device="meta"))
    assert (logits.shape, logits.device.type) == ((3, 16), "meta")


def test_weights_and_graph_are_its_identity(saved: bytes) -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(2 * images)

    class Same(Doubled):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images)

    images = torch.rand(2, 3, 8, 8)
    digests = {weights_sha256(read_program(export(make(), images), "w.pt2")) for make in (Doubled, Same)}
    other = edited(saved, "weights/weight_0", lambda weights: weights[:-4] + bytes(4))
    digests |= {weights_sha256(read_program(content, "w.pt2")) for content in (saved, other)}
    assert len(digests) == 4


def test_sizes_that_are_free_stay_free() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    height, width = torch.export.Dim("height", min=4, max=64), torch.export.Dim("width", min=4)
    free = ({0: torch.export.Dim("batch"), 2: height, 3: width},)
    program = read_program(export(network, torch.rand(2, 3, 8, 8), free), "w.pt2")
    assert program(torch.rand(2, 3, 20, 11)).shape == (2, 4)
    with pytest.raises(ValueError, match="exported for images of 3 x 4 … 64 x 4 …"):
        program(torch.rand(2, 3, 65, 11))


# --- What is refused -----------------------------------------------------------------------------------------------


def test_a_fixed_number_of_images_is_refused_with_how_to_export() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert "batches of exactly 2 images: export it for any number, dynamic_shapes=(" in refusal(
        export(small(), images, None)
    )
    up_to_64 = ({0: torch.export.Dim("batch", max=64)},)
    assert "at most 64 images" in refusal(export(small(), images, up_to_64))
    even = ({0: 2 * torch.export.Dim("half")},)
    assert "some sizes only" in refusal(export(small(), torch.rand(4, 3, 8, 8), even))


@pytest.mark.parametrize("network", [small(), nn.Sequential(nn.Dropout(), nn.Flatten())], ids=["norm", "dropout"])
def test_a_program_exported_in_training_is_refused(network: nn.Module) -> None:
    assert "network.eval()" in refusal(export(network.train(), torch.rand(2, 3, 8, 8)))


def test_other_inputs_and_outputs_are_refused(saved: bytes) -> None:
    class Two(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images + 1, images + 2

    assert "one tensor, the logits" in refusal(export(Two(), torch.rand(2, 3)))

    def take_two(model: Any) -> None:
        specs = model["graph_module"]["signature"]["input_specs"]
        specs.append(specs[-1])

    assert "takes 2 tensors" in refusal(with_json(saved, "models/model.json", take_two))


@pytest.mark.parametrize("kept", [0, 10, 1000, 0.5, 0.99])
def test_a_truncated_program_is_refused(saved: bytes, kept: float) -> None:
    assert "no readable file of torch.export.save" in refusal(
        saved[: kept if isinstance(kept, int) else int(len(saved) * kept)]
    )


def test_another_version_of_the_format_is_refused(saved: bytes) -> None:
    assert "has version 9 of the format" in refusal(
        with_json(saved, "models/model.json", lambda model: model["schema_version"].update(major=9))
    )


# --- What would run ------------------------------------------------------------------------------------------------


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._target, "owned")


def pickled(target: Path) -> bytes:
    sink = io.BytesIO()
    torch.save({"x": Malicious(target)}, sink)
    return sink.getvalue()


def in_example_inputs(content: bytes, target: Path) -> bytes:
    return edited(content, "sample_inputs/model.pt", lambda _: pickled(target))


def in_weights(content: bytes, target: Path) -> bytes:
    def mark(config: Any) -> None:
        next(payload for payload in config["config"].values() if payload["path_name"] == "weight_0")["use_pickle"] = (
            True
        )

    return edited(with_json(content, "model_weights_config.json", mark), "weights/weight_0", lambda _: pickled(target))


def in_a_constant(content: bytes, target: Path) -> bytes:
    constant = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    config = with_json(content, "model_constants_config.json", lambda config: config["config"].update(evil=constant))
    sink = io.BytesIO(config)
    with zipfile.ZipFile(sink, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/data/constants/opaque_obj_0", pickle.dumps(Malicious(target)))
    return sink.getvalue()


def in_an_expression(content: bytes, target: Path) -> bytes:
    run = f"__import__('pathlib').Path({str(target)!r}).write_text('owned')"

    def hide(model: Any) -> None:
        sizes = model["graph_module"]["graph"]["tensor_values"]["relu"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": run, "hint": {"as_int": 2}}}

    return with_json(content, "models/model.json", hide)


@pytest.mark.parametrize(
    ("hide", "refused"),
    [(in_example_inputs, False), (in_weights, True), (in_a_constant, True), (in_an_expression, False)],
)
def test_nothing_in_a_program_is_run(
    saved: bytes, tmp_path: Path, hide: Callable[[bytes, Path], bytes], refused: bool
) -> None:
    target = tmp_path / "written by the program"
    content, images = hide(saved, target), torch.rand(3, 3, 8, 8)
    if refused:
        assert "pickled, and nothing in a checkpoint is ever run" in refusal(content)
    else:
        torch.testing.assert_close(read_program(content, "w.pt2").eval()(images), small()(images))
    assert not target.exists()
    with contextlib.suppress(Exception):
        torch.export.load(io.BytesIO(content))
    assert target.exists()  # the file is as malicious as it looks


@pytest.mark.parametrize(
    ("operator", "says"),
    [
        ("torch.ops.aten.save.default", "not among the operators"),
        ("torch.ops.aten.from_file.default", "not among the operators"),
        # Writes where its indices say, without a look at the size.
        ("torch.ops.aten._sparse_coo_tensor_unsafe.default", "not among the operators"),
        ("torch.ops.aten.set_.source_Tensor", "not among the operators"),
        ("torch.ops.aten.randn_like.default", "not among the operators"),
        ("torch.ops.aten.randn.default", "not among the operators"),
        ("torch.ops.aten.as_strided.default", "not among the operators"),
        ("os.system", "only PyTorch's own operators"),
        ("torch.ops.higher_order.cond", "only PyTorch's own operators"),
        ("torch.ops.aten.__class__.default", "not among the operators"),
        ("_operator.methodcaller", "only PyTorch's own operators"),
    ],
)
def test_steps_that_are_no_arithmetic_are_refused(saved: bytes, operator: str, says: str) -> None:
    def replace(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][1]["target"] = operator

    assert says in refusal(with_json(saved, "models/model.json", replace))


def test_a_program_that_changes_its_weights_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) * self.weight

    def replace(model: Any) -> None:
        (node,) = (node for node in model["graph_module"]["graph"]["nodes"] if "mul" in node["target"])
        node["target"] = "torch.ops.aten.mul_.Tensor"
        node["inputs"] = node["inputs"][::-1]
        for one, name in zip(node["inputs"], ("self", "other"), strict=True):
            one["name"] = name

    saved = export(Counting().eval(), torch.rand(2, 1, 4, 4))
    assert "changes its own weights by torch.ops.aten.mul_.Tensor" in refusal(
        with_json(saved, "models/model.json", replace)
    )

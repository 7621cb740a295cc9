"""Programs of ``torch.export``, followed operator by operator: PyTorch's own on tensors, without those for files."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: Numbers that the format gives to PyTorch's types and memory formats.
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
STRIDED = 7

#: What is done with sizes, which are plain numbers when a program runs.
_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            *("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "getitem"),
            *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"),
        )
    },
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not")},
}

#: Operators that compute on tensors, besides those that PyTorch calls its core: what networks export before they are
#: decomposed. None reaches files or memory that is not its arguments'.
_MORE = frozenset(
    (
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "add_", "avg_pool1d", "baddbmm"),
        *("batch_norm", "chunk", "clamp_", "clamp_min", "concat", "contiguous", "conv1d", "conv2d", "conv3d"),
        *("conv_transpose2d", "div_", "dropout", "dropout_", "einsum", "elu_", "expand_as", "feature_dropout"),
        *("fill_", "flatten", "gelu_", "group_norm", "hardsigmoid", "hardsigmoid_", "hardswish", "hardswish_"),
        *("hardtanh_", "instance_norm", "layer_norm", "leaky_relu_", "lift_fresh_copy", "linalg_vector_norm"),
        *("linear", "log_softmax", "masked_fill", "matmul", "max_pool1d", "max_pool2d", "mish", "mish_"),
        *("movedim", "mul_", "narrow", "new_ones", "new_zeros", "numpy_T", "ones_like", "pad", "pixel_shuffle"),
        *("relu6", "relu_", "repeat_interleave", "reshape", "rms_norm", "roll", "rsub"),
        *("scaled_dot_product_attention", "selu", "selu_", "sigmoid_", "silu", "silu_", "softmax", "softplus"),
        *("split", "square", "stack", "sub_", "swapaxes", "swapdims", "t", "tanh_", "to", "transpose", "type_as"),
        *(
            "unbind",
            "unflatten",
            "unsqueeze_",
            "where",
            "zero_",
            "zeros_like",
            "zeros",
            "ones",
            "new_full",
            "full",
            "tile",
            "norm",
            "expand",
        ),
    )
)

#: Core ones that draw at random, or show memory that nobody has written.
_NEVER = frozenset(
    (
        *("as_strided", "bernoulli", "empty", "empty_like", "empty_strided", "native_dropout"),
        *("rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm", "resize_"),
    )
)

_DYNAMIC = "dynamic_shapes=({0: torch.export.Dim('batch')},)"


class Unfit(Exception):
    """Why a program cannot be followed."""


@dataclass(frozen=True)
class _Value:
    """What an earlier step made, by name."""

    name: str


class _Device:
    """Stands for where the images are, wherever the program was exported."""


@dataclass(frozen=True)
class _Size:
    """A size that may lie between two numbers, both included; None: any."""

    least: int
    most: int | None

    def holds(self, size: int) -> bool:
        return self.least <= size and (self.most is None or size <= self.most)

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least} … {self.most or ''}".rstrip()


@dataclass(frozen=True)
class _Step:
    """One operator.

    Attributes:
        apply: the operator.
        arguments: by position.
        named: by name.
        results: names of what it returns, in order; a list where it returns one list.
        single: whether it returns one value rather than several.
        last: names of values that no later step needs.
    """

    apply: Callable[..., Any]
    arguments: Sequence[Any]
    named: Mapping[str, Any]
    results: Sequence[str]
    single: bool
    last: Sequence[str]


class Exported(nn.Module):
    """An exported program as a network. Its graph is part of its state dict, and so of the weights' digest.

    Args:
        graph: the format's graph module, plain data.
        tensors: parameters, buffers and constants, by the program's names for them.
        limits: the format's range constraints of sizes that are free.
    """

    def __init__(
        self, graph: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], limits: Mapping[str, Any]
    ) -> None:
        super().__init__()
        signature, graph = graph["signature"], graph["graph"]
        self._inputs: dict[str, str] = {}
        images: list[str] = []
        for spec in signature["input_specs"]:
            ((kind, held),) = spec.items()
            if kind == "user_input" and "as_tensor" in held["arg"]:
                images.append(held["arg"]["as_tensor"]["name"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                owned, tensor = held[f"{kind}_name"].replace(".", "/"), tensors[held[f"{kind}_name"]]
                if kind == "parameter":
                    self.register_parameter(owned, nn.Parameter(tensor, requires_grad=False))
                else:
                    self.register_buffer(owned, tensor)
                self._inputs[held["arg"]["name"]] = owned
            else:
                raise Unfit("takes something else than one tensor of images")
        if len(images) != 1:
            raise Unfit(f"takes {len(images)} tensors instead of one, the images")
        (self._images,) = images
        self._logits = _output(signature["output_specs"])
        batch, *self._sizes = [_size(size, limits) for size in graph["tensor_values"][self._images]["sizes"]]
        if batch.most is not None:
            up_to = "exactly" if batch.least == batch.most else "at most"
            raise Unfit(f"takes batches of {up_to} {batch.most} images: export it for any number, {_DYNAMIC}")
        self._steps = _steps(graph["nodes"], self._logits, {*self._inputs, self._images})
        self._graph = json.dumps(
            [signature, [[node["target"], node["inputs"], node["outputs"]] for node in graph["nodes"]]], sort_keys=True
        ).encode()

    def get_extra_state(self) -> torch.Tensor:
        """The graph: the same weights in another one are another network."""
        return torch.frombuffer(bytearray(self._graph), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        raise ValueError("an exported program takes no other weights")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raises ValueError if the program is for images of another size."""
        sizes = images.shape[1:]
        if len(sizes) != len(self._sizes) or not all(map(_Size.holds, self._sizes, sizes)):
            raise ValueError(f"the program was exported for images of {' x '.join(map(str, self._sizes))}")
        own = {**self._parameters, **self._buffers}
        values: dict[str, Any] = {name: own[owned] for name, owned in self._inputs.items()}
        values[self._images] = images

        def given(argument: Any) -> Any:
            if isinstance(argument, _Value):
                return values[argument.name]
            if isinstance(argument, list):
                return [given(one) for one in argument]
            return images.device if isinstance(argument, _Device) else argument

        for step in self._steps:
            result = step.apply(
                *(given(argument) for argument in step.arguments),
                **{name: given(argument) for name, argument in step.named.items()},
            )
            values.update(zip(step.results, [result] if step.single else result, strict=True))
            for name in step.last:
                values.pop(name, None)
        logits: torch.Tensor = values[self._logits]
        return logits


def _output(specs: Sequence[Mapping[str, Any]]) -> str:
    """The name of the logits."""
    kinds = [kind for spec in specs for kind in spec]
    if "buffer_mutation" in kinds:
        raise Unfit("was exported in training: call network.eval() before torch.export.export")
    if kinds != ["user_output"] or "as_tensor" not in specs[0]["user_output"]["arg"]:
        raise Unfit("must return one tensor, the logits")
    name: str = specs[0]["user_output"]["arg"]["as_tensor"]["name"]
    return name


def _size(size: Mapping[str, Any], limits: Mapping[str, Any]) -> _Size:
    """One size of the images that a program takes, from the format's number or expression."""
    if "as_int" in size:
        return _Size(size["as_int"], size["as_int"])
    free = re.fullmatch(r"(?:Symbol\(')?(\w+)(?:'[^()]*\))?", size["as_expr"]["expr_str"])
    if free is None:  # such as multiples of a number
        raise Unfit(f"takes batches or images of some sizes only: export it for any number, {_DYNAMIC}")
    limit = limits.get(free[1], {})
    return _Size(limit.get("min_val") or 0, limit.get("max_val"))


def _steps(nodes: Sequence[Mapping[str, Any]], logits: str, owned: set[str]) -> list[_Step]:
    """The operators in order, each with the values that may be forgotten after it; none writes to those ``owned``."""
    steps: list[_Step] = []
    needed = {logits}
    for node in reversed(nodes):
        if node["target"] == "torch.ops.aten._assert_tensor_metadata.default":
            continue  # of the device of the export
        apply = _operator(node["target"])
        arguments = [(one.get("name", ""), _argument(one["arg"])) for one in node["inputs"]]
        if any(name in ("train", "training", "dropout_p") and value for name, value in arguments):
            raise Unfit("was exported in training: call network.eval() before torch.export.export")
        by_name = node["target"].startswith("torch.ops.")
        schema: Any = getattr(apply, "_schema", None)
        written = {one.name for one in schema.arguments if one.is_write} if schema else set()
        if any(owned.intersection(_names(value)) for name, value in arguments if name in written):
            raise Unfit(f"changes its own weights by {node['target']}")
        results, single = _results(node["outputs"])
        used = {name for _, value in arguments for name in _names(value)}
        last = [*(used - needed), *(name for name in results if name not in needed | used)]
        needed |= used
        steps.append(
            _Step(
                apply,
                [] if by_name else [value for _, value in arguments],
                dict(arguments) if by_name else {},
                results,
                single,
                last,
            )
        )
    return steps[::-1]


def _operator(target: str) -> Callable[..., Any]:
    if target in _ON_NUMBERS:
        return _ON_NUMBERS[target]
    known = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target)
    if known is None:
        raise Unfit(f"uses {target}, and only PyTorch's own operators (aten) are followed")
    if known[1] not in _MORE and (known[1] in _NEVER or not _is_core(known[1])):
        raise Unfit(f"uses {target}, which is not among the operators that are followed")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, known[1]), known[2])
    return found


def _is_core(name: str) -> bool:
    operators = getattr(torch.ops.aten, name, None)
    if not isinstance(operators, torch._ops.OpOverloadPacket):
        return False
    return any(torch.Tag.core in getattr(operators, overload).tags for overload in operators.overloads())


def _argument(argument: Mapping[str, Any]) -> Any:
    """An operator's argument, from the format's union of types."""
    ((kind, value),) = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_int" | "as_ints" | "as_bool" | "as_bools" | "as_string":
            return value
        case "as_float":
            return float(value)  # infinity is a word
        case "as_floats":
            return [float(one) for one in value]
        case "as_tensor":
            return _Value(value["name"])
        case "as_tensors":
            return [_Value(one["name"]) for one in value]
        case "as_optional_tensor" | "as_sym_int" | "as_sym_bool" | "as_sym_float":
            return _Value(value["as_name"]) if "as_name" in value else _argument(value)
        case "as_optional_tensors" | "as_sym_ints" | "as_sym_bools" | "as_sym_floats":
            return [_Value(one["as_name"]) if "as_name" in one else _argument(one) for one in value]
        case "as_scalar_type":
            return DTYPES[value]
        case "as_memory_format":
            return _MEMORY_FORMATS[value]
        case "as_layout" if value == STRIDED:
            return torch.strided
        case "as_device":
            return _Device()
    raise Unfit(f"has an argument that is not read here ({kind.removeprefix('as_')})")


def _names(value: Any) -> list[str]:
    """Of the values that an argument needs."""
    if isinstance(value, list):
        return [name for one in value for name in _names(one)]
    return [value.name] if isinstance(value, _Value) else []


def _results(outputs: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """Names of what an operator returns, and whether that is one value."""
    values = [_argument(output) for output in outputs]
    if len(values) == 1 and isinstance(values[0], list):
        return _names(values[0]), False
    names = [value.name if isinstance(value, _Value) else "" for value in values]
    return names, len(values) == 1

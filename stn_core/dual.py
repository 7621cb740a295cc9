"""A certificate without chance: bounds of a ReLU network's logits over an L2 ball, by the dual of a linear program.

Wong & Kolter 2018 (theorem 1 and algorithm 1), with the ball of Wong et al. 2018: reference [17] of the paper, and what
its Table 1 compares to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.grad import conv2d_input


@dataclass(frozen=True)
class _Relaxed:
    """A ReLU whose inputs lie between known bounds, as two lines of one slope: it is between slope * input and
    slope * input + above. Both (images, *features)."""

    slope: torch.Tensor
    above: torch.Tensor


@dataclass(frozen=True)
class _Interval:
    """Of linear functions of a layer's output, over the ball; (images, functions)."""

    lower: torch.Tensor
    upper: torch.Tensor


def margins(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, epsilon: float) -> torch.Tensor:
    """By how much the label's logit exceeds each class's, at least, anywhere in the ball.

    Args:
        network: a ``Sequential`` of ``Linear``, ``Conv2d`` (zeros around), ``ReLU`` and ``Flatten`` (all but the rows),
            the last of them ``Linear``.
        images: float (rows, channels, height, width).
        labels: int64 (rows,).
        epsilon: radius of the L2 ball around each image, in pixel units; 0 gives the margins at the image.

    Returns:
        (rows, classes); 0 at the label. Where all others are positive no perturbation in the ball changes the answer.
        It has a gradient in the network's parameters.

    Raises:
        ValueError: the network has other layers, or ones that are not in this order.
    """
    check_network(network)
    assert isinstance(network, nn.Sequential)
    layers = list(network)  # and not its children: one that comes twice would be left out
    shapes = _shapes(layers, images)
    relaxed: dict[int, _Relaxed] = {}
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.ReLU):
            shape = shapes[index]
            each = torch.eye(shape.numel(), dtype=images.dtype, device=images.device).view(1, -1, *shape)
            bound = _interval(layers[:index], shapes, relaxed, each, images, epsilon)
            relaxed[index] = _relax(bound.lower.view(-1, *shape), bound.upper.view(-1, *shape))
    classes = shapes[len(layers)].numel()
    identity = torch.eye(classes, dtype=images.dtype, device=images.device)
    differences = identity[labels].unsqueeze(1) - identity.unsqueeze(0)
    return _interval(layers, shapes, relaxed, differences, images, epsilon).lower


def check_network(network: nn.Module) -> None:
    """Raise ValueError unless ``margins`` knows all of the network's layers."""
    what = None
    if type(network) is not nn.Sequential:  # another's forward may do anything
        what = f"is a {type(network).__name__}"
    elif other := next((layer for layer in network if not _known(layer)), None):
        what = f"has a layer {' '.join(str(other).split())}"
    elif not len(network) or not isinstance(network[-1], nn.Linear):
        what = "does not end with Linear"
    if what is not None:
        raise ValueError(
            f"the network {what}: the dual bound knows a Sequential of Linear, Conv2d, ReLU and Flatten, "
            "such as mnist_shallow"
        )


def _known(layer: nn.Module) -> bool:
    if layer._forward_hooks or layer._forward_pre_hooks:  # such as weight_norm's, who computes the weights anew
        return False
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return type(layer) in (nn.Linear, nn.ReLU)


def _interval(
    layers: Sequence[nn.Module],
    shapes: Sequence[torch.Size],
    relaxed: dict[int, _Relaxed],
    functions: torch.Tensor,
    images: torch.Tensor,
    epsilon: float,
) -> _Interval:
    """Bounds of linear functions of what the layers put out.

    Args:
        layers: the network's first ones.
        shapes: of the input of each layer, without the rows.
        relaxed: the ReLUs among them.
        functions: coefficients (images or 1, functions, *features).
        images: (rows, channels, height, width).
        epsilon: radius of the ball.
    """
    lower = upper = torch.zeros((), dtype=images.dtype, device=images.device)
    for index in reversed(range(len(layers))):
        layer = layers[index]
        if isinstance(layer, nn.ReLU):
            lines = relaxed[index]
            lower = lower + _at(functions.clamp(max=0), lines.above)
            upper = upper + _at(functions.clamp(min=0), lines.above)
            functions = functions * lines.slope.unsqueeze(1)
        else:
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
                weights = functions if isinstance(layer, nn.Linear) else functions.sum((-2, -1))
                lower, upper = lower + weights @ layer.bias, upper + weights @ layer.bias
            functions = _transposed(layer, functions, shapes[index])
    middle = _at(functions, images)
    reach = epsilon * torch.linalg.vector_norm(functions.flatten(2), dim=2)
    return _Interval(middle + lower - reach, middle + upper + reach)


def _at(functions: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Linear functions (images or 1, functions, *features) of points (images, *features)."""
    rows, flat = functions.flatten(2), points.flatten(1)
    # Functions that all images share are multiplied as a matrix: a batch of products would copy them.
    return flat @ rows[0].T if len(rows) == 1 else (rows @ flat.unsqueeze(2)).squeeze(2)


def _transposed(layer: nn.Module, functions: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Coefficients of a layer's output, as ones of its input, whose shape is given."""
    if isinstance(layer, nn.Linear):
        return functions @ layer.weight
    if isinstance(layer, nn.Flatten):
        return functions.unflatten(2, shape)
    assert isinstance(layer, nn.Conv2d)
    rows = functions.flatten(0, 1)
    found = conv2d_input(
        (len(rows), *shape),
        layer.weight,
        rows,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    return found.unflatten(0, functions.shape[:2])


def _relax(lower: torch.Tensor, upper: torch.Tensor) -> _Relaxed:
    on, off = lower >= 0, upper <= 0
    # Where a ReLU is surely on or off its bounds may be equal.
    slope = torch.where(on | off, on.to(lower.dtype), upper / torch.where(on | off, 1.0, upper - lower))
    return _Relaxed(slope, torch.where(on | off, 0.0, -slope * lower))


def _shapes(layers: Sequence[nn.Module], images: torch.Tensor) -> list[torch.Size]:
    """Of each layer's input, without the rows, and of the last one's output."""
    shapes, features = [images.shape[1:]], images[:1]
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear) and features.dim() != 2:
                raise ValueError("the network has a Linear layer of images that are not flattened")
            features = layer(features)
            shapes.append(features.shape[1:])
    return shapes

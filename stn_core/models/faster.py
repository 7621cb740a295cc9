"""The same network, calculated faster: the results differ by rounding alone."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stn_core.naming import one_line


def folded(network: nn.Module) -> nn.Module:
    """Batch normalisation made part of the convolutions before it, as their weights allow once training is over.

    Args:
        network: left as it is.

    Returns:
        A network for evaluation, which shares with ``network`` what is not folded; ``network`` itself where nothing is,
        or where its code cannot be followed with symbols for tensors.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        graph = fx.Tracer().trace(network)
        fused = _fold(graph, dict(network.named_modules()))
    except Exception:  # its code may say anything to a symbol
        return network
    finally:
        for module in training:
            module.training = True
    if not fused:
        return network
    # Holds references to the network's modules, in containers of its own.
    result = fx.GraphModule(network, graph)
    for name, conv in fused.items():
        result.set_submodule(name, conv)
    return result


def _fold(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Take batch normalisation that can be folded out of ``graph``; the convolutions that do its work, by name."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(modules[node.target]) for node in calls)
    fused: dict[str, nn.Module] = {}
    for norm in calls:
        conv = norm.args[0] if norm.args else None
        # Whoever sees the convolution's own result, or calls it elsewhere, needs it as it is.
        if not (isinstance(conv, fx.Node) and conv in calls and len(conv.users) == 1):
            continue
        name = str(conv.target)
        before, after = modules[name], modules[norm.target]
        if not (isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d)) or times[id(before)] > 1:
            continue
        if after.running_mean is not None:  # else it normalises by the batch even after training
            fused[name] = fuse_conv_bn_eval(before, after)
            norm.replace_all_uses_with(conv)
            graph.erase_node(norm)
    return fused


class Compiled(nn.Module):
    """A network through ``torch.compile``, for batches of one shape.

    Its rows depend on each other no more than the network's do, but are rounded otherwise. Compiling happens at the
    first pass, takes seconds to minutes, and on the CPU needs a C++ compiler.

    Raises:
        ValueError: in the first pass, if the network cannot be compiled, or nothing is there to do it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._compiled = torch.compile(network, dynamic=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            logits: torch.Tensor = self._compiled(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = getattr(error, "inner_exception", error)  # without advice on how to debug PyTorch
            raise ValueError(f"torch.compile cannot compile the network: {one_line(reason)}") from error
        return logits

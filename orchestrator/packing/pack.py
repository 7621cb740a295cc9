"""A user's own network and images, written as data that any machine reads without the user's code."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from orchestrator.errors import PackError
from orchestrator.packing.images import Dataset, check_same, count_of, encode_parts, labelled
from orchestrator.planning.resolve import resolve
from orchestrator.progress import meter
from orchestrator.spec import Spec, validate
from stn_core.models import EXPORTED, Normalized, read_program, weights_sha256
from stn_core.naming import listed, one_line
from workers import layout
from workers.settings import Model
from workers.store import ObjectMissing, Store, open_store

#: Images on which the program is held against the network, under noise.
_TRIED = 4

#: How far the program's logits may be from the network's, beside the largest: sums in another order.
_TOLERANCE = 1e-4

_INSTEAD = (
    "put a function that makes it into a module and its state dict into a file, and write a spec with model: "
    "{name: package.module:function, checkpoint: FILE}"
)

_HEADER = """\
# Written by orchestrator.pack, of {images} images. Certify them, here or on any machine, by
#   stn certify {folder}/spec.yaml
# A copy of the folder elsewhere is named by
#   --set dataset.path=COPY/images --set model.checkpoint=COPY/network.pt2 --run COPY/run
"""


def pack(
    network: nn.Module,
    images: Dataset,
    folder: str | Path,
    *,
    sigma: float,
    draws: int = 1000,
    selection_draws: int = 100,
    protocol: str = "split",
    alpha: float = 0.001,
    radii: Sequence[float] | Mapping[str, float] | None = None,
    seed: int = 0,
    run: str | Path | None = None,
    classes: Sequence[str] | None = None,
    normalization: Mapping[str, Sequence[float]] | None = None,
) -> Spec:
    """Write a network, images and a spec that names both; ``certify`` takes that here and on any machine.

    Defaults are those of Cohen et al. (2019), with 1 000 draws in place of 100 000. Anything else is changed in the
    spec: ``load_spec("FOLDER/spec.yaml", ["sampling.draws=100000"])``. The same network and images again leave all as
    it is.

    Args:
        network: maps float32 images (rows, channels, height, width), noisy pixels around [0, 1], to logits (rows,
            classes). Taken in evaluation mode, on the CPU; left as it was.
        images: pairs of image and label, by number. An image is a tensor or array (channels, height, width) of one or
            three channels, uint8, or floating point in [0, 1] on the grid of 8-bit pixels; or an image of PIL, L or
            RGB. A label is an integer from 0 on.
        folder: where to write, a folder or s3://bucket/prefix: ``network.pt2``, ``images/`` (Parquet of PNG) and, last,
            ``spec.yaml``.
        sigma: standard deviation of the Gaussian noise, in [0, 1] pixel units.
        draws, selection_draws: noisy copies of each image, to bound the chosen class and to choose it.
        protocol: a name in ``stn_core.PROTOCOLS``.
        alpha: probability with which one image's certificate may be false.
        radii: at which certified accuracy is reported, in [0, 1] pixel units, or {start, stop, step}. Default: to 4
            sigma in steps of sigma / 4; 100 000 draws certify no L2 radius of 4 sigma.
        seed: of all noise.
        run: where to keep the run. Default: ``run/`` in the folder.
        classes: names by label.
        normalization: {mean, std}, one number per channel each, where the network wants pixels so: applied after the
            noise.

    Returns:
        The spec that was written.

    Raises:
        PackError: network or images cannot be written so, or the folder holds others.
        SpecError: a setting is wrong.
        StoreError: the folder cannot be written.
    """
    store, count = open_store(str(folder)), count_of(images)
    shape = labelled(images, 0)[0].shape
    program = _exported(network, shape)
    if classes is not None and len(classes) != program.classes:
        raise PackError(f"classes has {len(classes)} names, and the network {program.classes} outputs")
    content = {
        "dataset": {
            "kind": "parquet",
            "path": f"{store.uri}/{layout.IMAGES}".rstrip("/"),
            **({"mode": "gray"} if shape[0] == 1 else {}),
        },
        "model": {
            "name": EXPORTED,
            "checkpoint": f"{store.uri}/{layout.NETWORK}",
            **({} if normalization is None else {"normalization": _plain(normalization)}),
            "num_classes": program.classes,
        },
        "noise": {"sigma": _plain(sigma)},
        "sampling": {"draws": _plain(draws), "selection_draws": _plain(selection_draws), "seed": _plain(seed)},
        "confidence": {"protocol": protocol, "alpha": _plain(alpha)},
        "radii": {"stop": 4 * _plain(sigma), "step": _plain(sigma) / 4} if radii is None else _plain(radii),
        "store": {"run": f"{store.uri}/run" if run is None else open_store(str(run)).uri},
    }
    spec = validate(content, "pack")
    _check_answers(
        network, program, [labelled(images, number, shape)[0] for number in range(min(count, _TRIED))], spec.model
    )
    header = _HEADER.format(images=count, folder=store.uri)
    text = f"{header}{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}".encode()
    _check_spec(store, text)
    _put_program(store, program)
    keys = []
    with meter("packing", count, "images") as progress:
        for number, part in enumerate(encode_parts(images, shape, program.classes, classes)):
            keys.append(key := layout.part(number))
            if not store.create(key, part.content):
                check_same(store.read(key), part, f"{store.uri}/{key}")
            progress.advance(part.images)
    for stored in store.list(layout.IMAGES):
        if stored.key not in keys:  # they would be among the images
            raise PackError(f"{store.uri}/{stored.key} is of other images: name another folder, or remove this one")
    resolve(spec)  # as a driver does on any machine
    if not store.create(layout.SPEC, text):
        _check_spec(store, text)
    return spec


def _plain(value: Any) -> Any:
    """Numbers of NumPy and PyTorch as Python's, so that YAML has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    return [_plain(own) for own in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


@dataclass(frozen=True)
class _Program:
    """A network, exported.

    Attributes:
        content: of its file.
        network: as it is read from that.
        classes: how many it tells apart.
    """

    content: bytes
    network: nn.Module
    classes: int


def _exported(network: nn.Module, shape: tuple[int, ...]) -> _Program:
    """The program of a network for any number of images of one shape. Raises PackError."""
    images = torch.zeros((2, *shape))
    try:
        own = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        with torch.inference_mode():
            logits = own(images)
    except Exception as error:  # the user's network may raise anything
        raise PackError(f"the network cannot take images of shape {shape}: {one_line(error)}") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise PackError(f"the network must return logits (rows, classes), of 2 images it returned {got}")
    sink = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch's, of its own code
            batch = ({0: torch.export.Dim("batch")},)
            exported = torch.export.export(own, (images,), dynamic_shapes=batch)
            for node in exported.graph.nodes:
                node.meta.pop("stack_trace", None)  # names the user's files
            torch.export.save(exported, sink)
        read = read_program(sink.getvalue(), "torch.export").eval()
    except Exception as error:  # of the user's code, and of what PyTorch makes of it
        raise PackError(f"the network cannot be exported ({one_line(error)}): {_INSTEAD}") from error
    return _Program(sink.getvalue(), read, logits.shape[1])


def _check_answers(network: nn.Module, program: _Program, pixels: Sequence[np.ndarray], model: Model) -> None:
    """Raise PackError unless the program answers noisy images as the network does."""
    images = torch.from_numpy(np.stack(pixels)).float() / 255
    images = images + torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    constants = None if model.normalization is None else (model.normalization.mean, model.normalization.std)
    own = copy.deepcopy(network).cpu().eval()
    with torch.inference_mode():
        try:
            asked, got = (
                (one if constants is None else Normalized(one, *constants))(images) for one in (own, program.network)
            )
        except Exception as error:  # as of normalization for other channels
            raise PackError(f"the network fails on noisy images: {one_line(error)}") from error
    apart = (asked - got).abs().max() / asked.abs().max().clamp_min(1)
    if not apart <= _TOLERANCE:
        raise PackError(f"the exported network answers otherwise than the network itself: {_INSTEAD}")


def _put_program(store: Store, program: _Program) -> None:
    """Leave the program in the folder, unless it is there. Raises PackError if another is."""
    if store.create(layout.NETWORK, program.content):
        return
    place = f"{store.uri}/{layout.NETWORK}"
    try:
        there = weights_sha256(read_program(store.read(layout.NETWORK), place))
    except ValueError as error:
        raise PackError(f"{one_line(error)}: remove it, or name another folder") from error
    # PyTorch may have become another one meanwhile: what counts is what the program does.
    if there != weights_sha256(program.network):
        raise PackError(f"{place} is another network: name another folder, or remove this one")


def _check_spec(store: Store, text: bytes) -> None:
    """Raise PackError if the folder holds another spec."""
    try:
        there = store.read(layout.SPEC)
    except ObjectMissing:
        return
    if there == text:
        return
    try:
        old, new = yaml.safe_load(there), yaml.safe_load(text)
        changed = [name for name in new if old.get(name) != new[name]]
    except (yaml.YAMLError, AttributeError):
        changed = []
    what = f"differs in {listed(changed)}" if changed else "is of other images, or was edited"
    raise PackError(
        f"{store.uri}/{layout.SPEC} {what}: name another folder, or change what load_spec reads from that file"
    )

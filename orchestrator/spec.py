"""The spec: what a user asks for, read from YAML and validated before anything is spent."""

from __future__ import annotations

import copy
import json
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from orchestrator.errors import SpecError
from stn_core.arithmetic import Precision
from stn_core.certificates import CERTIFICATES, certificates_for
from stn_core.certify import check_noise
from stn_core.confidence import PROTOCOLS, Interval, check_protocol
from stn_core.naming import did_you_mean, one_line, pick
from workers.attack_settings import Attacks
from workers.settings import (
    NEEDS,
    Dataset,
    Model,
    Noise,
    Sampling,
    Section,
    SplittingNoise,
    StoreSettings,
    Training,
    stepped,
)

#: Radii that adaptive sampling settles one by one.
_MOST_RADII = 100

#: Protocols that hold for numbers of draws that the votes themselves choose.
SEQUENTIAL = tuple(name for name, protocol in PROTOCOLS.items() if protocol.sequential)


class Confidence(Section):
    """How votes become bounds. Chosen anew at every reduce; the votes do not depend on it."""

    protocol: Literal["paper", "paper_two", "split", "label", "exact", "anytime", "anytime_label", "stages"] = Field(
        "paper", description="which class is certified, and what its bounds are corrected for: docs/statistics.md"
    )
    alpha: Annotated[FiniteFloat, Field(gt=0, ge=1e-100, lt=1)] = Field(
        0.05, description="probability with which one image's certificate may be false"
    )
    interval: Interval = Field("clopper_pearson", description="randomised: tighter, by a recorded chance per image")
    beta: Annotated[FiniteFloat, Field(gt=0, lt=1)] = Field(
        0.01, description="probability with which a statement about the whole data set may be false"
    )


class Resources(Section):
    """What the work may use."""

    actors: PositiveInt | Literal["auto"] = Field(
        "auto", description="at most; auto: one per GPU, else one per CPU, that the cluster has or comes to have"
    )
    gpus_per_actor: Annotated[FiniteFloat, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="auto: 1 where the cluster has GPUs at the start, else 0"
    )
    threads_per_actor: PositiveInt = Field(1, description="CPU threads, and CPUs reserved, per actor")
    batch_size: PositiveInt | Literal["auto"] = Field("auto", description="noisy images per forward pass")
    precision: Precision = Field("float32", description="of the forward pass; tensorfloat32: on GPUs that have it")
    compile: bool = Field(False, description="the network goes through torch.compile; CPUs need a C++ compiler for it")
    shard_size: PositiveInt | Literal["auto"] = Field("auto", description="images per shard; auto: by draws")
    max_attempts: PositiveInt = Field(3, description="times a shard is tried before it is given up")
    stall_s: Annotated[FiniteFloat, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="seconds on one shard after which its worker is replaced; auto: 20 times the median, at "
        "least 10 minutes",
    )


def _certificates(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that a spec means without naming any."""
    fitting = certificates_for(getattr(spec.get("noise"), "kind", ""))
    if getattr(spec.get("sampling"), "mode", "fixed") == "fixed":
        return fitting
    # Draws end when all are decided: those that need the fewest.
    return tuple(name for name in fitting if CERTIFICATES[name].bounds == 1 and not CERTIFICATES[name].dimension_power)


class Spec(Section):
    """One certification job."""

    dataset: Dataset = Field(description="the images that are certified")
    model: Model = Field(description="the network, and where its weights come from")
    noise: Noise = Field(description="what is added to the images; kind: gaussian where none is named")
    sampling: Sampling = Field(description="how many noisy copies of each image vote")
    confidence: Confidence = Field(Confidence(), description="how votes become bounds")
    certificates: tuple[str, ...] = Field(
        default_factory=lambda spec: _certificates(spec),
        description="how bounds become radii, of those made for the noise; default: all of them, under adaptive "
        "sampling those of one class",
    )
    radii: Annotated[tuple[Annotated[FiniteFloat, Field(ge=0)], ...], BeforeValidator(stepped), Field(min_length=1)] = (
        Field(description="where certified accuracy is reported, in [0, 1] pixel units: a list, or {start, stop, step}")
    )
    store: StoreSettings = Field(description="where votes and tables are kept")
    resources: Resources = Field(Resources(), description="what the work may use")
    training: Training | None = Field(None, description="for `stn train`, which writes model.checkpoint")
    attack: Attacks | None = Field(None, description="for `stn attack`")

    @model_validator(mode="after")
    def _fits_together(self) -> Spec:
        if self.sampling.mode == "adaptive" and self.noise.kind in ("splitting", "none"):
            raise ValueError(
                f"sampling.mode: {self.noise.kind} noise is enumerated, which takes all of its draws: set it to fixed"
            )
        if not self.certificates and self.noise.kind != "none":
            fitting = ", ".join(certificates_for(self.noise.kind))
            raise ValueError(f"certificates: none are named; with {self.noise.kind} noise there are {fitting}")
        check_view(self.certificates, (self.confidence.protocol,), self.noise, self.sampling)
        _check_sequential(self.sampling, self.confidence)
        if self.sampling.mode == "adaptive" and self.sampling.tolerance is None and len(self.radii) > _MOST_RADII:
            raise ValueError(
                f"radii: adaptive sampling would settle each of {len(self.radii)} by itself: set sampling.tolerance "
                f"for a whole curve, or name at most {_MOST_RADII}"
            )
        _check_enumerable(self.noise, self.sampling)
        _check_additive(self.noise, self.training, self.attack)
        if list(self.radii) != sorted(set(self.radii)):
            raise ValueError("radii: must increase, each once")
        return self


def check_view(certificates: Sequence[str], protocols: Sequence[str], noise: Noise, sampling: Sampling) -> None:
    """Raise ValueError unless these certificates and protocols can be computed from such votes."""
    for name in certificates:
        check_noise(pick(CERTIFICATES, name, "certificate"), noise.kind)
    for name in protocols:
        check_protocol(pick(PROTOCOLS, name, "protocol"), noise.kind)
        if name in _USE_INSTEAD and sampling.selection_draws == 0:
            other = _USE_INSTEAD[name]
            raise ValueError(f"protocol {name!r} needs selection votes: set sampling.selection_draws, or use {other!r}")
        if name == "stages" and sampling.stages is None:
            raise ValueError(
                "protocol 'stages' looks after numbers of draws that are declared beforehand: set sampling.stages and "
                "sampling.mode adaptive, or use 'anytime'"
            )


#: Protocols that choose the class by selection votes, and what does without.
_USE_INSTEAD = {"split": "paper", "anytime": "anytime_label", "stages": "anytime_label"}


def _check_sequential(sampling: Sampling, confidence: Confidence) -> None:
    """Raise ValueError unless bounds hold for numbers of draws that the votes themselves choose, where they do."""
    protocol = confidence.protocol
    if sampling.mode == "adaptive" and not PROTOCOLS[protocol].sequential:
        raise ValueError(
            f"protocol {protocol!r} holds for a number of draws fixed beforehand, and sampling.mode is adaptive: set "
            f"confidence.protocol to {' or '.join(SEQUENTIAL)}"
        )
    if sampling.stages is not None and protocol != "stages":
        raise ValueError(f"sampling.stages belongs to protocol 'stages', and confidence.protocol is {protocol!r}")
    if PROTOCOLS[protocol].sequential and confidence.interval == "randomised":
        raise ValueError(
            f"randomised intervals are for a number of draws fixed beforehand, not for protocol {protocol!r}: set "
            "confidence.interval to clopper_pearson"
        )


def _check_enumerable(noise: Noise, sampling: Sampling) -> None:
    """Raise ValueError unless the draws are all there are, where noise is enumerated."""
    if noise.kind == "none" and (sampling.draws != 1 or sampling.selection_draws):
        raise ValueError(
            "without noise (noise.kind none) all draws are the same: set sampling.draws to 1 and "
            "sampling.selection_draws to 0"
        )
    if isinstance(noise, SplittingNoise):
        draws = noise.build().draws
        if sampling.draws != draws or sampling.selection_draws:
            raise ValueError(
                f"splitting noise of scale {noise.scale!r} has {draws} draws in all and needs no others: "
                f"set sampling.draws to {draws} and sampling.selection_draws to 0"
            )


def _check_additive(noise: Noise, training: Training | None, attack: Attacks | None) -> None:
    """Raise ValueError unless noise is there, and simply added to images, where something needs that."""
    if attack is not None and noise.kind == "splitting":
        raise ValueError("attack: gradients pass through noise that is added, and splitting noise is not: remove it")
    if training is not None and training.method in NEEDS["sigma"] and training.sigma is None and noise.kind == "none":
        raise ValueError(f"training: method {training.method} trains with noise, and noise.kind is none: set sigma")
    if training is not None and training.method == "smoothadv" and training.sigma is None and noise.kind == "splitting":
        raise ValueError("training: method smoothadv needs noise that is added to images, and splitting noise is not")


#: What a spec may be given as: itself, a YAML file, or its sections as plain data.
SpecSource = Spec | Path | str | Mapping[str, Any]


def load_spec(
    source: SpecSource, overrides: Sequence[str] = (), *, run: str | None = None, limit: int | None = None
) -> Spec:
    """Read and validate a spec.

    Args:
        source: a YAML file; or sections as plain data, as YAML has them; or a spec, to be changed.
        overrides: "section.key=value" each, the value in YAML, applied before validation.
        run: in place of store.run, a folder or s3://bucket/prefix.
        limit: only the first so many images, as a run of its own: "-limit-N" is added to store.run, unless ``run`` is
            given.

    Raises:
        SpecError: the file or an override is wrong; the message names file, key, value and what would be right.
    """
    if isinstance(source, Spec) and not overrides and run is None and limit is None:
        return source
    content, name = _content(source)
    for override in overrides:
        _apply(content, override)
    if limit is not None:
        if run is None:
            run = f"{_validated(copy.deepcopy(content), name).store.run.rstrip('/')}-limit-{limit}"
        _apply(content, f"dataset.limit={limit}")
    if run is not None:
        _apply(content, f"store.run={json.dumps(run, ensure_ascii=False)}")  # which is YAML too
    return _validated(content, name)


def _content(source: SpecSource) -> tuple[dict[str, Any], str]:
    """A spec as plain data that nobody else holds, and what to call it in errors. Raises SpecError."""
    if isinstance(source, Spec):
        return source.model_dump(exclude_unset=True), "spec"
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source)), "spec"
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise SpecError(f"cannot read spec {path}: {reason}") from error
    return _sections(text, str(path)), str(path)


def load_text(text: str, source: str, overrides: Sequence[str] = ()) -> Spec:
    """``load_spec`` of what a file, called ``source``, holds."""
    content = _sections(text, source)
    for override in overrides:
        _apply(content, override)
    return _validated(content, source)


def _sections(text: str, source: str) -> dict[str, Any]:
    """YAML as plain data. Raises SpecError."""
    content = _parse(text, source)
    if not isinstance(content, dict):
        raise SpecError(f"{source} must hold sections (dataset, model, noise, …), see examples/demo.yaml")
    return content


def _validated(content: dict[str, Any], source: str) -> Spec:
    """``validate``, of a spec that may name files of numbers. Raises SpecError."""
    training = content.get("training")
    for key, section in (
        ("dataset", content.get("dataset")),
        *((f"training.{name}", training.get(name)) for name in ("dataset", "validation") if isinstance(training, dict)),
    ):
        if isinstance(section, dict) and isinstance(section.get("indices"), str):
            section["indices"] = _index_list(f"{source}: {key}.indices", Path(section["indices"]))
    return validate(content, source)


def _index_list(key: str, path: Path) -> list[int]:
    """The numbers in a file, one on each line. Raises SpecError."""
    try:
        lines = path.expanduser().read_text().splitlines()
    except (OSError, ValueError, RuntimeError) as error:
        raise SpecError(f"{key} names {path}, which cannot be read: {one_line(error)}") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.strip().isdecimal():
            raise SpecError(f"{key}: line {number} of {path} must be the number of an image, got {line.strip()!r}")
    return [int(line) for line in lines if line.strip()]


_RANK = {"extra_forbidden": 0, "literal_error": 1, "missing": 3}


def validate(content: Mapping[str, Any], source: str) -> Spec:
    """A Spec from plain data. Raises SpecError; ``source`` says where the data came from."""
    try:
        return Spec.model_validate(content)
    except ValidationError as error:
        # An unknown key first: a section that seems to be missing may be one misspelt.
        found = [one for one in error.errors() if one["type"] != "default_factory_not_called"]  # follows from another
        errors = sorted(found, key=lambda one: _RANK.get(one["type"], 1))
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        # Keys and values are the user's, and may hold line breaks.
        raise SpecError(f"{source}: {' '.join(_describe(errors[0]).split())}{more}") from None


def _apply(content: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise SpecError(f"--set {override}: expected section.key=value, such as noise.sigma=0.5")
    section = content
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise SpecError(f"--set {override}: {key} has no keys below it")
    section[keys[-1]] = _parse(text, f"--set {override}: {text!r}")


class _Loader(yaml.SafeLoader):
    """Safe, and a key given twice is an error: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key.value, str) and key.value != "<<"):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise SpecError(f"{source} is not valid YAML: {where}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"{source} is not valid YAML: {one_line(error)}") from error


def _describe(error: ErrorDetails) -> str:
    """key, value, and what would be right."""
    valid, path, members = _walk(Spec, error["loc"])
    key = ".".join(path)
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key {key}{did_you_mean(path[-1], valid)}; valid here: {', '.join(valid)}"
        case "missing":
            return f"{key} is missing"
        case "union_tag_invalid" | "union_tag_not_found":
            if not isinstance(error["input"], Mapping):
                return f"{key}: got {error['input']!r}; must be a section with keys: {', '.join(valid)}"
            tags = [get_args(member.model_fields["kind"].annotation)[0] for member in members]
            tag = error["input"].get("kind")
            kind = f"{key}.kind"
            return (
                f"{kind} is missing; valid: {', '.join(tags)}"
                if tag is None
                else (f"{kind}: got {tag!r}{did_you_mean(str(tag), tags)}; valid: {', '.join(tags)}")
            )
        case "model_type" | "model_attributes_type" | "dict_type":
            own = [name for member in members for name in getattr(member, "model_fields", ())]
            return f"{key}: got {error['input']!r}; must be a section with keys: {', '.join(own or valid)}"
        case "literal_error":
            expected = error.get("ctx", {}).get("expected", "")
            near = did_you_mean(str(error["input"]), re.findall(r"'([^']+)'", expected))
            also = " or a number" if expected == "'auto'" else ""
            return f"{key}: got {error['input']!r}{near}; valid: {expected}{also}"
        case "value_error":
            message = error["msg"].removeprefix("Value error, ")
            return f"{key}: {message}" if key else message
        case _:
            return f"{key}: got {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _walk(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], list[str], list[Any]]:
    """Valid keys where an error arose, its path as the user wrote it (without the names of union members), and the
    types that may stand there."""
    valid = list(model.model_fields)
    path: list[str] = []
    current: list[Any] = [model]
    for step in location:
        models = [m for m in current if isinstance(m, type) and issubclass(m, BaseModel)]
        tagged = [m for m in models if "kind" in m.model_fields and step in get_args(m.model_fields["kind"].annotation)]
        if tagged and len(models) > 1:
            current, valid = list(tagged), list(tagged[0].model_fields)
            continue
        named = next((kind for kind in current if get_origin(kind) is dict), None)
        if named is not None:  # the user's own names, each of a section
            path.append(str(step))
            current = _members(get_args(named)[1])
            fields = (name for section in current for name in getattr(section, "model_fields", ()))
            valid = list(dict.fromkeys(fields))
            continue
        holder = next((m for m in models if step in m.model_fields), None)
        if holder is None and isinstance(step, str) and path and not models:
            break  # the name of a union's member, such as int or literal['auto']
        path.append(str(step))
        if holder is not None:
            valid = list(holder.model_fields)
            current = _members(holder.model_fields[str(step)].annotation)
            sections = [m for m in current if isinstance(m, type) and issubclass(m, BaseModel)]
            if len(sections) == 1:
                valid = list(sections[0].model_fields) if step != location[-1] else valid
            elif sections and step == location[-1]:
                valid = list(dict.fromkeys(name for section in sections for name in section.model_fields))
    return valid, path, current


def _members(annotation: Any) -> list[Any]:
    """The types an annotation may stand for."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]

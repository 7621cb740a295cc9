"""Writes docs/spec.md, from the schema of a spec, docs/cli.md, from the help of every command, and docs/schema.md, from
what tables say of their columns: `make docs`."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import click
import yaml
from pydantic import BaseModel, PlainValidator
from pydantic.fields import FieldInfo

from orchestrator import schemas
from orchestrator.cli import main as stn
from orchestrator.spec import Spec
from stn_core.certificates import CERTIFICATES, certificates_for
from workers.settings import Noise

FOLDER = Path(__file__).parent

_SPEC_HEAD = """\
<!-- Written by `make docs` from the schema: do not edit. -->

# The spec

What a spec may say, key by key. It is YAML: `stn init` writes one to begin with, [examples/](../examples) has more, and
`--set section.key=value` changes a value of it for one command. An unknown key or a wrong value is told in one line.
Keys without a default are required. Pixels are in [0, 1]; a *place* is a path that driver and workers share, or
`s3://bucket/key`.
"""

_CLI_HEAD = """\
<!-- Written by `make docs` from the help of every command: do not edit. -->

# The command line

What `stn COMMAND --help` says. What commands have in common is in the [README](../README.md#commands).
"""


# --- The spec ------------------------------------------------------------------------------------------------------


def spec_page() -> str:
    """docs/spec.md."""
    parts = [_SPEC_HEAD]
    parts += _sections({name: (field.annotation, field) for name, field in Spec.model_fields.items()}, {})
    return "\n".join(parts)


def _sections(named: Mapping[str, tuple[Any, FieldInfo]], seen: dict[Any, str]) -> Iterator[str]:
    """A text for each, and for those below it. ``seen``: names of sections that have theirs, by what they are."""
    for name, (annotation, field) in named.items():
        depth = "#" * (2 + name.count("."))
        yield f"{depth} `{name}`\n"
        sections = _models(annotation)
        seen[tuple(sections) or name] = name
        yield (_doc(sections[0]) if len(sections) == 1 else _sentence(field.description or "")) + "\n"
        if not sections:
            yield _table(("value", "default"), [(_value(annotation, field.metadata), _default(field))])
            if name == "certificates":
                yield _by_noise()
            continue
        if len(sections) > 1:
            yield _table(("`kind`", "is"), [(f"`{_kind(section)}`", _doc(section)) for section in sections])
        yield from _keys(name, sections, seen)


def _keys(name: str, sections: Sequence[type[BaseModel]], seen: dict[Any, str]) -> Iterator[str]:
    """The table of keys of a section, or of all of its kinds, and a text for each section below it."""
    owners: dict[tuple[str, ...], list[str]] = {}
    below: dict[str, tuple[Any, FieldInfo]] = {}
    for section in sections:
        for key, field in section.model_fields.items():
            if key == "kind":
                continue
            nested = _models(field.annotation)
            path = f"{name}.NAME" if get_origin(field.annotation) is dict else f"{name}.{key}"
            if nested and tuple(nested) not in seen and path not in below:
                below[path] = (field.annotation, field)
            place = seen.get(tuple(nested), path) if nested else ""
            value = _link(place, field.annotation) if nested else _value(field.annotation, field.metadata)
            row = (f"`{key}`", value, _default(field), field.description or "")
            owners.setdefault(row, []).append(_kind(section) if len(sections) > 1 else "")
    head = ("key", *(("of kind",) if len(sections) > 1 else ()), "value", "default", "means")
    rows = []
    for (key, value, default, means), kinds in owners.items():
        of = "all" if len(kinds) == len(sections) else ", ".join(f"`{kind}`" for kind in kinds)
        rows.append((key, *((of,) if len(sections) > 1 else ()), value, default, means))
    if rows:
        yield _table(head, rows)
    yield from _sections(below, seen)


def _link(place: str, annotation: Any) -> str:
    kind = "sections by name" if get_origin(annotation) is dict else "section"
    return f"{kind}, [{place}](#{re.sub('[^a-z0-9_]', '', place.lower())})"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that may stand for an annotation, or in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return _models(get_args(annotation)[1])
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _kind(section: type[BaseModel]) -> str:
    return str(get_args(section.model_fields["kind"].annotation)[0])


def _value(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What may stand there, in words."""
    facts = [fact for one in metadata for fact in (one.metadata if isinstance(one, FieldInfo) else [one])]
    origin, parts = get_origin(annotation), get_args(annotation)
    if any(isinstance(fact, PlainValidator) for fact in facts):
        return "place"
    if origin is Annotated:
        return _value(parts[0], [*parts[1:], *facts])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_value(part, facts) for part in parts if part is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"list of {_value(parts[0]).replace('number', 'numbers', 1).replace('text', 'texts', 1)}"
    words = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}
    bounds = " and ".join(_bounds(facts, whole=annotation is int))
    return f"{words[annotation]} {bounds}".strip()


def _bounds(facts: Iterable[Any], *, whole: bool) -> Iterator[str]:
    for fact in facts:
        match fact:
            case annotated_types.Gt(gt=0) if whole:
                yield "≥ 1"
            case annotated_types.Gt(gt=value):
                yield f"> {value}"
            case annotated_types.Ge(ge=value):
                yield f"≥ {value}"
            case annotated_types.Lt(lt=value):
                yield "< 2^63" if value == 2**63 else f"< {value}"
            case annotated_types.Le(le=value):
                yield f"≤ {value:g}" if isinstance(value, float) else f"≤ {value}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default_factory is not None:
        return ""
    if isinstance(field.default, BaseModel):
        return f"`{_yaml(field.default.model_dump(mode='json', exclude_defaults=True))}`"
    return f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _by_noise() -> str:
    kinds = [_kind(section) for section in _models(Noise)]
    usual = {kind: certificates_for(kind) for kind in kinds}
    others = {
        kind: [name for name, one in CERTIFICATES.items() if one.noise == kind and name not in usual[kind]]
        for kind in kinds
    }
    rows = [(f"`{kind}`", _names(usual[kind]), _names(others[kind])) for kind in kinds]
    return _table(("under noise", "by default", "on request"), rows)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _doc(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").replace("``", "`").split())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# --- The command line ----------------------------------------------------------------------------------------------


def cli_page() -> str:
    """docs/cli.md."""
    parts = [_CLI_HEAD]
    root = click.Context(stn, info_name="stn", **{**stn.context_settings, "terminal_width": 100})
    for name, text in helps(stn, root):
        parts.append(f"## {name}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def helps(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """The name and the help of a command and of all below it."""
    yield context.command_path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.commands[name]
            yield from helps(below, click.Context(below, info_name=name, parent=context))


if __name__ == "__main__":
    (FOLDER / "spec.md").write_text(spec_page(), encoding="utf-8")
    (FOLDER / "cli.md").write_text(cli_page(), encoding="utf-8")
    (FOLDER / "schema.md").write_text(schemas.markdown(), encoding="utf-8")

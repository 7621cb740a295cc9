"""How to make a run again: its spec, the commands, and what the result can be held against."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import yaml

from orchestrator.reducing.tables import View
from orchestrator.reporting.reported import ReportedRun

#: Of what versions are recorded and pip does not install.
_NO_PACKAGES = {"python", "stn"}


@dataclass(frozen=True)
class Recipe:
    """What makes a run again.

    Attributes:
        spec: as YAML; `stn certify` takes it.
        commands: in their order, the spec being in ``spec.yaml``.
        digests: (what, value) that plan.json of the same run has.
    """

    spec: str
    commands: tuple[str, ...]
    digests: tuple[tuple[str, str], ...]


def recipe(run: ReportedRun) -> Recipe:
    """How to make ``run`` again."""
    plan, view = run.plan, run.reduced.view
    spec = plan.asked
    pinned = [f"{name}=={version}" for name, version in sorted(plan.versions.items()) if name not in _NO_PACKAGES]
    commands = [f"pip install {shlex.join(pinned)}"] if pinned else []
    if spec.training is not None and spec.model.checkpoint is not None:
        commands.append("stn train spec.yaml")
    commands.append("stn certify spec.yaml")
    place = shlex.quote(spec.store.run)
    if view != View.of(spec):
        commands.append(f"stn reduce {place} {shlex.join(_options(view))}")
    commands += [f"stn report {place}", f"stn verify {place} --recount 10"]
    return Recipe(
        yaml.safe_dump(
            spec.model_dump(mode="json", exclude={"attack"}, exclude_none=True), sort_keys=False, allow_unicode=True
        ),
        tuple(commands),
        (
            ("model's weights, sha-256", plan.model_sha256),
            ("data set, sha-256", plan.dataset_sha256),
            ("code, sha-256", plan.code_sha256),
            ("noise version", str(plan.noise_version)),
        ),
    )


def _options(view: View) -> list[str]:
    """The options of `stn reduce` that ask for this view."""
    words = [word for name in view.certificates for word in ("--certificate", name)]
    words += [word for name in view.protocols for word in ("--protocol", name)]
    words += ["--alpha", repr(view.alpha), "--beta", repr(view.beta), "--interval", view.interval]
    return [*words, "--radii", ",".join(map(repr, view.radii))]

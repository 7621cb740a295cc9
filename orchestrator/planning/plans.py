"""The plan: what a run is, resolved and fingerprinted before anything is spent. It never changes once written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt, TypeAdapter, ValidationError

from orchestrator.errors import RunError, SpecError
from orchestrator.spec import Spec, validate
from stn_core.certificates import CERTIFICATES
from stn_core.naming import one_line
from stn_core.noise import NOISE_VERSION
from stn_core.stopping import FixedDraws, Rule, Together, adaptive_rule
from workers.counting import CountJob
from workers.selection import selected
from workers.settings import PLACES

SCHEMA_VERSION = 1

#: Protocols whose bounds hold for any number of draws, whatever chose it, so that more may be added later.
ANYTIME = ("anytime", "anytime_label")


@dataclass(frozen=True)
class Plan:
    """What a run is.

    Attributes:
        spec: the resolved spec that the run was begun with.
        dataset_size: images in the whole data set; the run covers ``selected`` of them.
        num_classes: classes the model votes among.
        image_shape: (channels, height, width), pixels.
        shard_size: images per shard.
        model_sha256: digest of the model's weights.
        dataset_sha256: the data set's fingerprint.
        code_sha256: digest of this project's source files.
        versions: of Python, this project and the libraries that votes pass through.
        noise_version: which mapping from draw to noise.
        schema_version: of plan.json.
        goal: the spec that says what the votes are to decide, where it is another by now; kept beside the plan.
    """

    spec: Spec
    dataset_size: PositiveInt
    num_classes: PositiveInt
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    shard_size: PositiveInt
    model_sha256: str
    dataset_sha256: str
    code_sha256: str
    versions: Mapping[str, str]
    noise_version: int = NOISE_VERSION
    schema_version: int = SCHEMA_VERSION
    goal: Spec | None = None

    @property
    def asked(self) -> Spec:
        """The spec that says what the votes are to decide."""
        return self.spec if self.goal is None else self.goal

    @property
    def sequential(self) -> bool:
        """Whether draws came in rounds, so that votes may have decided how many there are."""
        return self.goal is not None or self.spec.sampling.mode == "adaptive"

    @cached_property
    def rule(self) -> Rule:
        """How many draws an image's votes ask for."""
        spec, sampling = self.asked, self.asked.sampling
        if sampling.mode == "fixed":
            return FixedDraws(sampling.draws)
        return Together(
            tuple(
                adaptive_rule(
                    CERTIFICATES[name],
                    scale=spec.noise.build().scale,
                    dimension=math.prod(self.image_shape),
                    alpha=spec.confidence.alpha,
                    draws=sampling.draws,
                    radii=spec.radii if sampling.tolerance is None else None,
                    tolerance=sampling.tolerance,
                    stages=sampling.stages,
                )
                for name in spec.certificates
            )
        )

    @cached_property
    def indices(self) -> Sequence[int]:
        """The data set's indices that the run covers, ascending."""
        return selected(self.spec.dataset, self.dataset_size)

    @property
    def images(self) -> int:
        """Images that the run covers: every figure's denominator."""
        return len(self.indices)

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_size)

    @property
    def passes(self) -> int:
        """Forward passes of the whole run, one per noisy image; of adaptive sampling, at most."""
        return self.images * (self.asked.sampling.draws + self.spec.sampling.selection_draws)

    def shard_images(self, shard: int) -> int:
        """Images in a shard."""
        return min(self.shard_size, self.images - shard * self.shard_size)

    def to_json(self) -> bytes:
        content = {
            **{name: value for name, value in dataclasses.asdict(self).items() if name != "goal"},
            "spec": self.spec.model_dump(mode="json", exclude={"attack"}),
            "versions": dict(self.versions),
        }
        return json.dumps({**content, "shards": self.shards, "images": self.images}, indent=2, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes, source: str) -> Plan:
        """Raises RunError if it is no plan, or one of a newer version."""
        try:
            values = json.loads(content)
            version = values["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{source} is damaged: not a plan") from error
        if not isinstance(version, int):
            raise RunError(f"{source} is damaged: its schema_version is {version!r}")
        if version > SCHEMA_VERSION:
            raise RunError(f"{source} was written by a newer version (schema {version}): update this installation")
        try:
            names = {field.name for field in dataclasses.fields(cls)} - {"goal"}
            fields = {name: value for name, value in values.items() if name in names}
            fields["spec"] = validate(values["spec"], "its spec")
            return _PLAN.validate_python(fields)
        except KeyError as error:
            raise RunError(f"{source} is damaged: it has no {error}") from error
        except SpecError as error:
            raise RunError(f"{source} is damaged: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise RunError(f"{source} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    def goal_json(self) -> bytes:
        """What is kept beside the plan of a run that was given another goal."""
        return json.dumps(
            {"schema_version": SCHEMA_VERSION, "spec": self.asked.model_dump(mode="json", exclude={"attack"})},
            indent=2,
            sort_keys=True,
        ).encode()

    def with_goal(self, content: bytes, source: str) -> Plan:
        """The inverse of ``goal_json``. Raises RunError if it is none, or of a newer version."""
        try:
            values = json.loads(content)
            version, spec = values["schema_version"], validate(values["spec"], "its spec")
        except KeyError as error:
            raise RunError(f"{source} is damaged: it has no {error}") from error
        except (ValueError, TypeError, SpecError) as error:
            raise RunError(f"{source} is damaged: {one_line(error)}") from error
        if version != SCHEMA_VERSION:
            raise RunError(f"{source} was written by a newer version (schema {version}): update this installation")
        asked = {name: getattr(spec, name) for name in ("sampling", "confidence", "certificates", "radii")}
        return dataclasses.replace(self, goal=self.spec.model_copy(update=asked))

    def goal_or_none(self) -> dict[str, Any] | None:
        """What decides in ``goal_json``, to be compared."""
        return None if self.goal is None else decisive(self.goal)

    def begun_as(self, stored: Plan) -> Plan:
        """This plan, as what the run of the ``stored`` one is to do from now on."""
        asked = self.spec
        same = stored.goal is None and decisive(asked) == decisive(stored.spec)
        begun = asked.model_copy(update={"sampling": stored.spec.sampling})
        return dataclasses.replace(self, spec=begun, goal=None if same else asked)

    def identity(self) -> dict[str, Any]:
        """What decides the votes, in JSON's own types. Two plans that agree here may share a run; paths, workers and
        views may differ."""
        spec = self.spec.model_dump(mode="json", include={"noise"})
        # Runs from before there was a choice do not name it.
        if spec["noise"].get("sampler") == "plain":
            del spec["noise"]["sampler"]
        dataset = self.spec.dataset
        return _flat(
            {
                **spec,
                "sampling": self._sampling(),
                "dataset": {
                    "kind": dataset.kind,
                    "every": dataset.every,
                    "limit": dataset.limit,
                    **({} if dataset.indices is None else {"indices": self._indices_sha256}),
                    "fingerprint": self.dataset_sha256,
                },
                "model": {
                    "name": self.spec.model.name,
                    "weights": self.model_sha256,
                    "normalization": self.spec.model.model_dump(mode="json")["normalization"],
                    "num_classes": self.num_classes,
                },
                "resources": {"precision": self.spec.resources.precision, "shard_size": self.shard_size},
                "noise_version": self.noise_version,
                "image_shape": list(self.image_shape),
            }
        )

    def _sampling(self) -> dict[str, Any]:
        """What of sampling decides the votes: a rule may be given another goal, and goes on from where they stand."""
        sampling = self.spec.sampling
        begun = {"selection_draws": sampling.selection_draws, "seed": sampling.seed}
        if sampling.mode == "fixed":
            return {**begun, "draws": sampling.draws}
        return {**begun, "mode": "adaptive", **({} if sampling.stages is None else {"stages": list(sampling.stages)})}

    @cached_property
    def _indices_sha256(self) -> str:
        return hashlib.sha256(" ".join(map(str, self.spec.dataset.indices or ())).encode()).hexdigest()

    def job(
        self, run: str, *, device: Literal["cpu", "cuda"], plan_sha256: str = "", sample: int | None = None
    ) -> CountJob:
        """What a worker needs to count any shard of the run at ``run``, whose plan.json has that digest.

        ``sample`` is the index of an image that every worker should be able to read.
        """
        spec, resources = self.spec, self.spec.resources
        return CountJob(
            store=spec.store.model_copy(update={"run": run}),
            dataset=spec.dataset,
            model=spec.model,
            noise=spec.noise,
            seed=spec.sampling.seed,
            selection_draws=spec.sampling.selection_draws,
            rule=self.rule,
            protocol=self.asked.confidence.protocol,
            sequential=self.sequential,
            num_classes=self.num_classes,
            image_shape=self.image_shape,
            indices=self.indices,
            sample=sample,
            shard_size=self.shard_size,
            batch_size=None if resources.batch_size == "auto" else resources.batch_size,
            precision=resources.precision,
            compile=resources.compile,
            device=device,
            threads=resources.threads_per_actor,
            plan_sha256=plan_sha256,
            model_sha256=self.model_sha256,
            dataset_sha256=self.dataset_sha256,
            import_paths=(str(Path.cwd()),),
            provenance={**self.provenance(), "dtype": resources.precision},
        )

    def provenance(self) -> dict[str, Any]:
        """What every table of the run remembers. Where the run, its data and its weights are kept and what worked on it
        is left out, so that the same votes make the same bytes."""
        return {
            "spec": self.spec.model_dump(
                mode="json",
                exclude={
                    "store": True,
                    "resources": True,
                    "attack": True,
                    "dataset": {*PLACES, "indices"},
                    "model": {"checkpoint"},
                    "training": {"dataset": {*PLACES, "indices"}, "validation": True},
                },
            ),
            "identity": self.identity(),
            "code_sha256": self.code_sha256,
            "versions": dict(self.versions),
        }


#: Looks at every value of a plan that was read.
_PLAN = TypeAdapter(Plan)


def decisive(spec: Spec) -> dict[str, Any]:
    """What of a spec says how many draws an image gets, in JSON's own types."""
    sampling = spec.sampling.model_dump(mode="json")
    if spec.sampling.mode == "fixed":
        return sampling
    confidence = {"protocol": spec.confidence.protocol, "alpha": spec.confidence.alpha}
    return {**sampling, **confidence, "certificates": list(spec.certificates), "radii": list(spec.radii)}


def difference(stored: Plan, asked: Plan) -> list[str]:
    """How what is asked differs from what the run is, one line per key; empty where it does not.

    The number of draws is no difference where the protocol that is asked for holds whatever it was that chose it.
    """
    old, new = stored.identity(), asked.identity()
    if asked.spec.confidence.protocol in ANYTIME:
        chosen = ("sampling.draws", "sampling.mode", "sampling.stages")
        old, new = ({key: value for key, value in one.items() if key not in chosen} for one in (old, new))
    if old["dataset.fingerprint"] != new["dataset.fingerprint"] and (cut := _cut(stored)) != _cut(asked):
        # Digests tell nobody what to change: it is how images are cut out.
        old, new = {**old, **cut, "dataset.fingerprint": ""}, {**new, **_cut(asked), "dataset.fingerprint": ""}
    return [
        f"{key}: the run has {old.get(key)!r}, asked {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _cut(plan: Plan) -> dict[str, Any]:
    """How images are decoded and cut out, where they are."""
    return {
        f"dataset.{key}": getattr(plan.spec.dataset, key, None) for key in ("resize", "crop", "interpolation", "mode")
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(_items(values, prefix))


def _items(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""From attempts to robust accuracy by size: what is published of a run's attacks, and reading it back.

An image is robust at a size if the classifier answers its label on every image that an attack found up to that size,
the clean one included. Where it answers another class on one of them it is broken; else it abstains on one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from orchestrator.errors import RunError
from orchestrator.planning.plans import Plan
from stn_core.naming import one_line
from stn_core.prediction import predict
from workers import attempts_table, counts_table, layout, sealed
from workers.attack_settings import Attack
from workers.columns import column
from workers.counts_table import VOTES
from workers.store import ObjectMissing, Store

#: Version of the two tables below, and of what describes an attack.
SCHEMA_VERSION = 1

#: Changes whenever the same settings come to find other images: attempts of two versions are not mixed.
ATTACK_VERSION = 1

ATTEMPTS_SCHEMA = pa.schema(
    [
        column("attack", pa.string(), "its name in the spec"),
        column("norm", pa.string(), "of its sizes: l1, l2 or linf"),
        column("index", pa.int64(), "the image's number in the data set"),
        column("key", pa.int64(), "the image's identity, as in counts"),
        column("label", pa.int64(), "its true class"),
        column(
            "size", pa.float64(), "that the attack may have, in its norm, [0, 1] pixel units; 0 is the image itself"
        ),
        column("l1", pa.float64(), "how far the attacked image is from the image in L1, [0, 1] pixel units"),
        column("l2", pa.float64(), "likewise in L2"),
        column("linf", pa.float64(), "likewise in L∞"),
        column("votes", VOTES, "votes on the attacked image: the classes that have some, ascending, and how many"),
        column("draws", pa.int64(), "noisy copies that voted; 0 where the image could not be attacked"),
        column("prediction", pa.int64(), "the classifier's answer", null="where it abstains, or could not be asked"),
        column("p_value", pa.float64(), "of the most voted class, Hung & Fithian's test"),
        column("correct", pa.bool_(), "whether the prediction is the label"),
    ]
)

ROBUSTNESS_SCHEMA = pa.schema(
    [
        column("attack", pa.string(), "its name in the spec"),
        column("norm", pa.string(), "of the size: l1, l2 or linf"),
        column("size", pa.float64(), "at which the row is, [0, 1] pixel units"),
        column("robust_accuracy", pa.float64(), "robust / images"),
        column("robust", pa.int64(), "images whose label is answered at every size up to this one"),
        column("broken", pa.int64(), "images of which another class is answered at one of them"),
        column("abstained", pa.int64(), "neither: no answer at one of them"),
        column("failed", pa.int64(), "images that could not be attacked"),
        column("missing", pa.int64(), "images not attacked yet: more than 0 in a partial table"),
        column("images", pa.int64(), "all images of the run: the denominator"),
        column("alpha", pa.float64(), "chance that an answer is not the most probable class"),
    ]
)

_METADATA_KEY = b"stn"

_ATTACK: TypeAdapter[Attack] = TypeAdapter(Attack)


@dataclass(frozen=True)
class Description:
    """What an attack on a run's classifier is: all that decides its attempts, but for the run.

    Attributes:
        name: of the attack.
        attack: its settings.
        draws: votes on each attacked image.
        seed: of starts, of the attacker's noise, and of the votes'.
        keep: first images of the run whose attacked versions are kept.
        source_sha256: digest of the weights that the images are made on, where they are others.
        attack_version: which way of attacking, by these settings.
    """

    name: str
    attack: Attack
    draws: int
    seed: int
    keep: int
    source_sha256: str | None
    attack_version: int = ATTACK_VERSION

    def values(self) -> dict[str, Any]:
        """In JSON's own types; where weights are kept is left out."""
        attack = self.attack.model_dump(mode="json", exclude={"source": {"checkpoint"}})
        asked = {"draws": self.draws, "seed": self.seed, "keep": self.keep}
        return {
            "attack": attack,
            **asked,
            "source_sha256": self.source_sha256,
            "attack_version": self.attack_version,
        }

    def to_json(self) -> bytes:
        return json.dumps({"schema_version": SCHEMA_VERSION, **self.values()}, indent=2, sort_keys=True).encode()

    @classmethod
    def from_json(cls, name: str, content: bytes, source: str) -> Description:
        """Raises RunError if it is none, or of a newer version."""
        try:
            values = json.loads(content)
            if values["schema_version"] > SCHEMA_VERSION:
                raise RunError(f"{source} was written by a newer version: update this installation")
            return cls.of(name, values)
        except (ValueError, KeyError, TypeError) as error:
            again = "delete it and run `stn attack` as before, which writes it again and keeps all attempts"
            raise RunError(f"{source} is damaged ({one_line(error)}): {again}") from error

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any]) -> Description:
        """The inverse of ``values``. Raises ValueError, KeyError or TypeError if they are none."""
        asked = {key: values[key] for key in ("draws", "seed", "keep", "source_sha256", "attack_version")}
        return cls(name, _ATTACK.validate_python(values["attack"]), **asked)


def difference(stored: Description, asked: Description) -> list[str]:
    """How what is asked differs from what the attack is, one line per key; empty where it does not."""
    old, new = (_flat(one.values()) for one in (stored, asked))
    return [
        f"{key}: it has {old.get(key)!r}, asked {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    attack = {f"attacks.{key}": value for key, value in values["attack"].items()}
    return {**{key: value for key, value in values.items() if key != "attack"}, **attack}


@dataclass(frozen=True)
class Attacked:
    """A run's attacks as they stand.

    Attributes:
        descriptions: of each, by name.
        attempts: by ATTEMPTS_SCHEMA.
        curves: by ROBUSTNESS_SCHEMA.
        alpha: of every answer.
        objects: with attempts, that the tables are of.
        outdated: there are others by now, or another attack was begun.
    """

    descriptions: dict[str, Description]
    attempts: pa.Table
    curves: pa.Table
    alpha: float
    objects: int = 0
    outdated: bool = False

    @property
    def complete(self) -> bool:
        """Every image was attacked in every way that was begun."""
        return not self.outdated and self.whole(self.descriptions)

    def whole(self, names: Iterable[str]) -> bool:
        """Whether every image was attacked in these ways."""
        own = self.curves.filter(pc.is_in(self.curves["attack"], pa.array(list(names), pa.string())))
        return not any(pc.sum(own[column]).as_py() for column in ("failed", "missing"))

    @cached_property
    def standings(self) -> dict[str, Standing]:
        """Of each attack."""
        return {
            name: _standing(self.attempts.filter(pc.equal(self.attempts["attack"], name))) for name in self.descriptions
        }


@dataclass(frozen=True)
class Standing:
    """What became of the images that one attack could be made on.

    Attributes:
        index: their numbers in the data set, ascending, int64 (images,).
        sizes: ascending, 0 first, in the attack's norm.
        correct: the label is answered at the size, bool (images, sizes).
        robust, broken: up to each size, bool (images, sizes).
    """

    index: NDArray[np.int64]
    sizes: NDArray[np.float64]
    correct: NDArray[np.bool_]
    robust: NDArray[np.bool_]
    broken: NDArray[np.bool_]


def _standing(rows: pa.Table) -> Standing:
    """Of one attack's rows, which have the same sizes for each image."""
    usable = rows.filter(pc.greater(rows["draws"], 0))
    sizes = np.unique(rows["size"].to_numpy())
    usable = usable.sort_by([("index", "ascending"), ("size", "ascending")])
    shape = (-1, max(1, len(sizes)))
    correct = usable["correct"].to_numpy().reshape(shape)
    answered = usable["prediction"].is_valid().to_numpy().reshape(shape)
    return Standing(
        usable["index"].to_numpy().reshape(shape)[:, 0],
        sizes,
        correct,
        np.logical_and.accumulate(correct, axis=1),
        np.logical_or.accumulate(answered & ~correct, axis=1),
    )


def descriptions(store: Store) -> dict[str, Description]:
    """Of all attacks that were begun on the run in ``store``. Raises RunError if one is damaged."""
    found = {}
    for stored in store.list(layout.ATTACKS):
        name = layout.attack_of(stored.key)
        if name is not None:
            found[name] = Description.from_json(name, store.read(stored.key), f"{store.uri}/{stored.key}")
    return found


def attempted(store: Store, plan: Plan) -> dict[str, list[int]]:
    """The shards that each attack has attempts on, ascending."""
    found: dict[str, list[int]] = {}
    for stored in store.list(layout.ATTACKS):
        of = layout.attempts_of(stored.key)
        if of is not None and of[1] < plan.shards:
            found.setdefault(of[0], []).append(of[1])
    return {name: sorted(shards) for name, shards in found.items()}


def read_attempts(store: Store, plan: Plan, description: Description, shard: int) -> pa.Table:
    """An attack's attempts on a shard's images, by ``attempts_table.SCHEMA``. Raises RunError if they are missing,
    damaged, or of something else."""
    key = layout.attempts(description.name, shard)
    where = f"{store.uri}/{key}"
    try:
        table, provenance = attempts_table.decode(store.read(key))
    except ObjectMissing:
        raise RunError(f"{where} is missing") from None
    except sealed.NewerVersion as error:
        raise RunError(f"{where}: {error}: update this installation") from error
    except ValueError as error:
        raise RunError(f"{where} is damaged: {error}; delete it and run `stn attack` again") from error
    sizes = np.array([0.0, *description.attack.sizes])
    indices = np.array(plan.indices[shard * plan.shard_size : (shard + 1) * plan.shard_size], dtype=np.int64)
    whole = np.array_equal(table["index"].to_numpy(), np.repeat(indices, len(sizes)))
    whole = whole and np.array_equal(table["size"].to_numpy(), np.tile(sizes, len(indices)))
    try:
        own = Description.of(description.name, provenance["description"]) == description
    except (ValueError, KeyError, TypeError):
        own = False
    own = own and provenance.get("attack") == description.name and provenance.get("shard") == shard
    same_run = provenance.get("classifier") == classifier(plan)
    if not (whole and own and same_run):
        raise RunError(f"{where} holds attempts of another attack, run or shard: delete it and run `stn attack` again")
    return table


def classifier(plan: Plan) -> dict[str, Any]:
    """What of a run's identity an attack on it depends on: all but how its own votes were sampled."""
    return {key: value for key, value in plan.identity().items() if not key.startswith("sampling.")}


def reduce_attacks(store: Store, plan: Plan, alpha: float) -> Attacked:
    """Publish what all attempts on a run's images say. Raises RunError if some are damaged."""
    result = computed(store, plan, alpha)
    _publish(store, plan, result)
    return result


def computed(store: Store, plan: Plan, alpha: float) -> Attacked:
    """What all attempts on a run's images say, read from their objects. Raises RunError if some are damaged.

    In memory are the votes of all of them, some hundred bytes an attempt.
    """
    found = descriptions(store)
    shards = attempted(store, plan)
    parts, curves = [ATTEMPTS_SCHEMA.empty_table()], [ROBUSTNESS_SCHEMA.empty_table()]
    for name, description in sorted(found.items()):
        tables = [
            _rows(read_attempts(store, plan, description, shard), description, plan, alpha)
            for shard in shards.get(name, [])
        ]
        own = pa.concat_tables([*tables, ATTEMPTS_SCHEMA.empty_table()])
        parts.append(own)
        curves.append(_curve(own, description, plan, alpha))
    objects = sum(len(shards.get(name, [])) for name in found)
    return Attacked(dict(sorted(found.items())), pa.concat_tables(parts), pa.concat_tables(curves), alpha, objects)


def _rows(table: pa.Table, description: Description, plan: Plan, alpha: float) -> pa.Table:
    votes = counts_table.dense(table["votes"], plan.num_classes)
    predicted = predict(votes, enumerated=plan.spec.noise.kind == "none")
    answer = predicted.answer(alpha)
    columns: dict[str, Any] = {
        "attack": pa.repeat(description.name, len(table)),
        "norm": pa.repeat(description.attack.norm, len(table)),
        **{name: table[name] for name in ("index", "key", "label", "size", "l1", "l2", "linf", "votes", "draws")},
        "prediction": pa.array(answer, mask=answer < 0),
        "p_value": predicted.p_value,
        "correct": answer == table["label"].to_numpy(),
    }
    return pa.table(columns, schema=ATTEMPTS_SCHEMA)


def _curve(rows: pa.Table, description: Description, plan: Plan, alpha: float) -> pa.Table:
    sizes = np.array([0.0, *description.attack.sizes])
    standing = (
        _standing(rows)
        if len(rows)
        else Standing(np.zeros(0, np.int64), sizes, *np.zeros((3, 0, len(sizes)), dtype=bool))
    )
    attacked = len(rows) // len(sizes)
    usable = len(standing.index)
    robust, broken = standing.robust.sum(axis=0), standing.broken.sum(axis=0)
    columns: dict[str, Any] = {
        "attack": pa.repeat(description.name, len(sizes)),
        "norm": pa.repeat(description.attack.norm, len(sizes)),
        "size": sizes,
        "robust_accuracy": robust / plan.images,
        "robust": robust,
        "broken": broken,
        "abstained": usable - robust - broken,
        "failed": pa.repeat(attacked - usable, len(sizes)),
        "missing": pa.repeat(plan.images - attacked, len(sizes)),
        "images": pa.repeat(plan.images, len(sizes)),
        "alpha": pa.repeat(alpha, len(sizes)),
    }
    return pa.table(columns, schema=ROBUSTNESS_SCHEMA)


def _publish(store: Store, plan: Plan, result: Attacked) -> None:
    """Leave the tables in the run, those of attacks that are not complete apart; whole ones are then removed."""
    metadata = {
        _METADATA_KEY: json.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "alpha": result.alpha,
                "objects": result.objects,
                "attacks": {name: one.values() for name, one in result.descriptions.items()},
                "classifier": classifier(plan),
            },
            sort_keys=True,
        ).encode()
    }
    folder, other = ("", layout.PARTIAL) if result.complete else (layout.PARTIAL, "")
    for key, table in ((layout.ATTEMPTS, result.attempts), (layout.ROBUSTNESS, result.curves)):
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
        store.replace(folder + key, sink.getvalue())
        if store.exists(other + key):
            store.delete(other + key)


def published_attacks(store: Store) -> Attacked | None:
    """What the last ``reduce_attacks`` published; None where nothing. Raises RunError if it is damaged or newer."""
    for folder in ("", layout.PARTIAL):
        if store.exists(folder + layout.ROBUSTNESS):
            break
    else:
        return None
    where = f"{store.uri}/{folder}{layout.ROBUSTNESS}"
    try:
        curves, attempts = (
            pq.ParquetFile(pa.BufferReader(store.read(folder + key))).read(use_threads=False)
            for key in (layout.ROBUSTNESS, layout.ATTEMPTS)
        )
        metadata = json.loads(curves.schema.metadata[_METADATA_KEY])
        if metadata["schema_version"] > SCHEMA_VERSION:
            raise RunError(f"{where} was written by a newer version: update this installation")
        if attempts.schema.metadata.get(_METADATA_KEY) != curves.schema.metadata[_METADATA_KEY]:
            raise ValueError("its tables are of two reduces")
        found = {
            name: Description.from_json(name, json.dumps({"schema_version": SCHEMA_VERSION, **values}).encode(), where)
            for name, values in metadata["attacks"].items()
        }
    except (pa.ArrowException, OSError, ObjectMissing, KeyError, TypeError, ValueError) as error:
        both = f"{where} or {layout.ATTEMPTS} beside it"
        raise RunError(f"{both} is damaged ({one_line(error)}): run `stn attack` again") from error
    there = [layout.attempts_of(stored.key) for stored in store.list(layout.ATTACKS)]
    objects = sum(of is not None and of[0] in found for of in there)
    begun = {layout.attack_of(stored.key) for stored in store.list(layout.ATTACKS)} - {None}
    return Attacked(
        found,
        attempts.replace_schema_metadata(),
        curves.replace_schema_metadata(),
        metadata["alpha"],
        metadata["objects"],
        outdated=begun != found.keys() or objects != metadata["objects"],
    )

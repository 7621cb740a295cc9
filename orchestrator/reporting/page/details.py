"""What a page shows of a run beyond its curves, read from the run's store."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.attacking.gallery import image_png
from orchestrator.numerals import percent, radius_down, radius_text
from orchestrator.reducing.tables import Line, published, read_certificates
from orchestrator.reporting.literature import Literature, literature
from orchestrator.reporting.page.breakdown import COLUMNS, Breakdown, Votes, break_down, read_ballots
from orchestrator.reporting.page.specimens import GROUPS, Specimen, Specimens, choose, gather
from orchestrator.reporting.reported import ReportedRun
from orchestrator.reporting.steps import Steps, line_name, load_steps
from workers.store import Store

#: Classes that the tables by class list, and lines of certificates that have one: a page stays readable.
_CLASSES_SHOWN, _LINES_SHOWN = 40, 8

#: Classes that an image's votes are shown of.
_VOTES_SHOWN = 3


@dataclass(frozen=True)
class Details:
    """A run, looked into.

    Attributes:
        run: the run.
        steps: the exact curve of each line.
        votes: what the votes say beyond the certificates.
        breakdown: its images by class, radius and draws.
        specimens: some of them.
        published: figures of others on the same data set.
    """

    run: ReportedRun
    steps: Mapping[Line, Steps]
    votes: Votes
    breakdown: Breakdown
    specimens: Specimens
    published: list[Literature]


def load_details(store: Store, run: ReportedRun, most_bytes: int) -> Details:
    """Look into ``run``, which is in ``store``. Raises RunError if something of it is damaged.

    Args:
        store: where the run is.
        run: the same.
        most_bytes: of images to look at, as 8-bit pixels; 0: the data set is not looked for.
    """
    view, partial = run.reduced.view, published(store) is None
    certificates = read_certificates(store, run.reduced, COLUMNS, partial=partial)
    shown = next((line for line in view.lines if line.guaranteed), view.lines[0])
    choices = choose(certificates, shown)
    votes = read_ballots(store, run.plan, {choice.index for choice in choices})
    specimens = gather(store, run.plan, shown, choices, votes.ballots, most_bytes)
    return Details(
        run=run,
        steps=load_steps(store, run),
        votes=votes,
        breakdown=break_down(certificates, view, run.plan.num_classes, votes),
        specimens=specimens,
        published=literature(run.plan, specimens.classes),
    )


def section(one: Details) -> dict[str, Any]:
    """What the page says of a run's images, but for the figures."""
    return {
        "classes": class_tables(one),
        "draws": draws_text(one),
        "failures": _failures(one),
        "chosen_by": line_name(one.run, one.specimens.line),
        "absent": one.specimens.absent,
        "groups": [
            {
                "name": group,
                "images": [
                    _card(image, one.specimens) for image in one.specimens.images if image.choice.group == group
                ],
            }
            for group in GROUPS
        ],
    }


def class_tables(one: Details) -> list[dict[str, Any]]:
    """Of each line: ``name``, ``columns``, ``rows`` (class, images, then accuracies and abstentions), ``hidden`` (how
    many classes are left out: of many, those with the lowest and the highest certified accuracy are shown)."""
    found = one.breakdown
    present = np.flatnonzero(found.images)
    tables = []
    for own in found.lines[:_LINES_SHOWN]:
        # At the smallest radius above 0, where there is one.
        accuracy = own.certified[present, min(1, len(found.radii) - 1)] / found.images[present]
        ranked = present[np.argsort(accuracy, kind="stable")]
        half = _CLASSES_SHOWN // 2
        shown = present if len(present) <= _CLASSES_SHOWN else np.sort(np.concatenate([ranked[:half], ranked[-half:]]))
        tables.append(
            {
                "name": line_name(one.run, own.line),
                "columns": [
                    "class",
                    "images",
                    "natural",
                    *(f"certified at {radius_text(radius)}" for radius in found.radii),
                    "abstain",
                ],
                "rows": [
                    [
                        _class_name(number, one.specimens.classes),
                        str(found.images[number]),
                        percent(found.majority[number] / found.images[number]),
                        *(percent(count / found.images[number]) for count in own.certified[number].tolist()),
                        str(own.abstained[number]),
                    ]
                    for number in shown.tolist()
                ],
                "hidden": len(present) - len(shown),
            }
        )
    return tables


def draws_text(one: Details) -> str:
    """How many draws the images have, in a sentence."""
    draws, times = one.breakdown.draws, one.breakdown.with_draws
    selection = one.run.plan.spec.sampling.selection_draws
    also = f", and {selection} more each to select a class" if selection else ""
    if not len(draws):
        return "No image is counted."
    total = int((draws * times).sum())
    if len(draws) == 1:
        return f"{times[0]} images were counted with {draws[0]} estimation draws each, {total} in all{also}."
    middle = int(np.repeat(draws, times)[int(times.sum()) // 2])
    return (
        f"{times.sum()} images were counted with {draws[0]} to {draws[-1]} estimation draws, as their votes asked for: "
        f"{total / int(times.sum()):.1f} on average, median {middle}, {total} in all{also}."
    )


def _failures(one: Details) -> dict[str, Any]:
    votes, summary = one.votes, one.run.reduced.summary
    return {
        "failed": votes.failed,
        "missing": summary.missing,
        "images": [(str(index), reason) for index, reason in sorted(votes.failures.items())],
        "more": votes.failed - len(votes.failures),
        "shards": [(str(shard), reason) for shard, reason in sorted(votes.given_up.items())[:20]],
        "more_shards": max(0, len(votes.given_up) - 20),
    }


def _card(one: Specimen, specimens: Specimens) -> dict[str, Any]:
    choice, ballot, classes = one.choice, one.ballot, specimens.classes
    answer = "abstains" if choice.prediction is None else _class_name(choice.prediction, classes)
    shown = ", ".join(f"{_class_name(number, classes)}: {votes}" for number, votes in ballot.votes[:_VOTES_SHOWN])
    others = sum(votes for _, votes in ballot.votes[_VOTES_SHOWN:])
    return {
        "index": choice.index,
        "answer": f"{_class_name(ballot.label, classes)} → {answer}",
        "wrong": choice.prediction is not None and choice.prediction != ballot.label,
        "radius": None if choice.prediction is None else radius_down(choice.radius),
        "votes": (shown or "none") + (f", other classes: {others}" if others else ""),
        "draws": ballot.draws,
        "clean": None if one.clean is None else _encoded(image_png(one.clean)),
        "noisy": None if one.noisy is None else _encoded(image_png(np.clip(one.noisy, 0, 1))),
    }


def _class_name(number: int, classes: tuple[str, ...] | None) -> str:
    named = classes is not None and number < len(classes) and classes[number] != str(number)
    return f"{number} {classes[number]}" if named and classes is not None else str(number)


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()

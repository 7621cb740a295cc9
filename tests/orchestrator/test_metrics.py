"""The dashboard shows what a driver tells, all of it and nothing else. The numbers: tests/cluster/test_submit.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

from orchestrator.on_ray.metrics import COUNTERS, GAUGES

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy" / "grafana.json").read_text())
#: As Ray exports them.
EXPORTED = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}


def test_every_panel_shows_metrics_that_there_are_and_every_metric_is_shown() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    shown = [set(re.findall(r"\b(?:ray|stn)_\w+", expression)) for expression in expressions]
    assert all(len(names) == 1 for names in shown)
    assert set.union(*shown) == EXPORTED
    assert all('{run=~"$run"}' in expression for expression in expressions)


def test_counters_are_shown_as_rates_or_sums_by_run() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert "sum by (run)" in target["expr"], panel["title"]
            assert ("rate(" in target["expr"]) == ("per" in panel["title"]), panel["title"]


def test_runs_are_chosen_among_those_that_there_are() -> None:
    (run,) = (one for one in DASHBOARD["templating"]["list"] if one["name"] == "run")
    assert re.findall(r"ray_\w+", run["query"]) == ["ray_stn_votes_total"]

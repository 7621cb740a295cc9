"""What a driver tells Prometheus of its run, through Ray. Names and meanings are here, deploy/grafana.json shows them.

Ray puts "ray_" before a name and "_total" after a counter's. Workers tell of their own requests to object storage.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from orchestrator.counting.dispatch import Counted, Died, Failed, GivenBack, GivenUp, News, Stalled, Started
from orchestrator.counting.policy import Facts
from workers import retries

#: Counters, each of one driver since it began.
COUNTERS = {
    "stn_votes": "Forward passes, one per noisy image: votes counted.",
    "stn_images_certified": "Images whose votes were counted.",
    "stn_images_failed": "Images that could not be counted.",
    "stn_shards_counted": "Shards committed.",
    "stn_shard_attempts_failed": "Attempts at a shard that failed, stalled, or lost their worker.",
    "stn_shards_given_up": "Shards given up.",
    retries.METRIC: retries.MEANING,
}
GAUGES = {"stn_workers": "Workers that are ready or at work."}


class Metrics:
    """The metrics of one run's driver.

    Args:
        run: where the run is kept: every metric's label.
    """

    def __init__(self, run: str) -> None:
        labels = {"run": run}
        self._counters = {name: Counter(name, text, tag_keys=("run",)) for name, text in COUNTERS.items()}
        self._workers = Gauge("stn_workers", GAUGES["stn_workers"], tag_keys=("run",))
        for metric in (*self._counters.values(), self._workers):
            metric.set_default_tags(labels)

    def see(self, news: News, facts: Facts) -> None:
        """Add an event or decision; ``facts`` are those before it."""
        ready = len(facts.queues)
        match news:
            case Started():
                ready += 1
            case Counted():
                if news.passes:  # by a worker of this driver
                    self._add("stn_votes", news.passes)
                    self._add("stn_images_certified", news.images - news.failed)
                    self._add("stn_images_failed", news.failed)
                    self._add("stn_shards_counted", 1)
            case Failed():
                self._add("stn_shard_attempts_failed", 1)
            case GivenBack():
                ready -= news.worker in facts.queues
            case Stalled() | Died():
                ready -= news.worker in facts.queues
                self._add("stn_shard_attempts_failed", bool(facts.queues.get(news.worker)))
            case GivenUp():
                self._add("stn_shards_given_up", 1)
        self._workers.set(ready)
        self._add(retries.METRIC, retries.take())

    def _add(self, name: str, amount: int) -> None:
        if amount:
            self._counters[name].inc(amount)

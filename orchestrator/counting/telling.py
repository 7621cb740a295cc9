"""What is told of work while it goes on: lines for people, values for logs."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping

from orchestrator.counting.dispatch import Counted, Died, Failed, GivenUp, News, Slow, Stalled
from orchestrator.counting.policy import Facts
from orchestrator.progress import Meter, time_text

log = logging.getLogger(__name__)


def tell(
    news: News,
    facts: Facts,
    images: Mapping[int, int],
    progress: Meter,
    called: Callable[[int], str] = "shard {}".format,
) -> None:
    """Tell of an event or decision.

    Args:
        news: what happened.
        facts: before it.
        images: in each shard.
        progress: of the work, in images.
        called: what people call a shard.
    """
    fields = described(news, facts)
    match news:
        case Counted():
            if news.failed:
                text = f"{called(news.shard)}: {news.failed} of {news.images} images could not be counted"
                progress.note(text, **fields)
            else:
                log.info("%s", news, extra={"fields": fields})
            progress.advance(images[news.shard])
        case Failed():
            progress.note(f"{called(news.shard)} failed on worker {news.worker}: {news.reason}", **fields)
        case Died():
            what = "was lost with its node" if news.node_lost else "died"
            progress.note(f"worker {news.worker} {what} and is replaced: {news.reason}", **fields)
        case Stalled():
            progress.note(
                f"{called(news.shard)} has stalled, {time_text(news.seconds)} on worker {news.worker}, which is "
                "replaced",
                **fields,
            )
        case Slow():
            progress.note(
                f"{called(news.shard)} has been on worker {news.worker} for {time_text(news.seconds)}; if that is too "
                "long, set resources.stall_s",
                **fields,
            )
        case _:
            log.info("%s", news, extra={"fields": fields})


def described(news: News, facts: Facts) -> dict[str, object]:
    """An event or decision as values: its kind, all it has, and which attempt at a shard it is about, from 1."""
    shard = getattr(news, "shard", None)
    if isinstance(news, Died) and facts.queues.get(news.worker):
        shard = facts.queues[news.worker][0]
    values = {"event": re.sub("(?<=.)(?=[A-Z])", "_", type(news).__name__).lower(), **dataclasses.asdict(news)}
    if shard is not None:
        values |= {"shard": shard, "attempt": facts.attempts[shard] + (not isinstance(news, GivenUp))}
    return values

"""Log lines as JSON objects, one to a line, for machines that collect them."""

from __future__ import annotations

import datetime
import json
import logging
import platform
from typing import Any, Literal

Format = Literal["text", "json"]

#: The environment variable of `--log-format`, which a submitted job takes along.
FORMAT = "STN_LOG_FORMAT"

#: Loggers that write whole requests at DEBUG, with the headers that sign them and session tokens.
_INDISCREET = ("boto3", "botocore", "s3transfer", "urllib3")

_log = logging.getLogger("orchestrator")
_common: dict[str, Any] = {"run": None}


def configure(form: Format, *, verbose: bool) -> None:
    """Set up logging to standard error.

    Args:
        form: of the lines. As JSON, what is otherwise said in words is logged too, and nothing else is printed there.
        verbose: log every event.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if form == "json" else logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[handler])
    logging.captureWarnings(form == "json")
    _common.update(run=None, host=platform.node())
    _log.setLevel(logging.DEBUG if verbose else logging.INFO if form == "json" else logging.NOTSET)
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
    for name in _INDISCREET if verbose else ():
        logging.getLogger(name).setLevel(logging.INFO)


def as_json() -> bool:
    """Whether lines are JSON."""
    return any(isinstance(handler.formatter, _JsonLines) for handler in logging.getLogger().handlers)


def concerns(run: str) -> None:
    """From now on, every line is about that run."""
    _common["run"] = run


def record(text: str, **fields: object) -> None:
    """A line of what is otherwise said in words; ``fields`` are its values for machines, ``event`` among them."""
    level = logging.ERROR if text.startswith(("error: ", "internal error: ")) else logging.INFO
    _log.log(level, "%s", text, extra={"fields": fields})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {"event": "said", **getattr(record, "fields", {})}
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "logger": record.name, **_common, **fields}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)

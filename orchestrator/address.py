"""Whether anything answers where a Ray cluster is said to be. Ray itself tries for many minutes before it says so."""

from __future__ import annotations

import socket

from stn_core.naming import one_line

#: Seconds that a cluster has to accept a connection.
_ANSWER_S = 10.0


def silent(address: str) -> str:
    """Why nothing answers at a cluster's address; empty where something does."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return ""  # "auto", or whatever else Ray makes sense of
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or one_line(error)
    return ""

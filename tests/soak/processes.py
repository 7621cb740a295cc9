"""Processes below this one, as /proc tells, and their end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """A process that is not a zombie.

    Attributes:
        pid: its number.
        parent: its parent's.
        born: clock ticks since boot; tells it from a later process of the same number.
        command: its command line, or the title it gave itself.
    """

    pid: int
    parent: int
    born: int
    command: str


def adopt_orphans() -> None:
    """From now on a process below this one whose parent dies becomes a child of this one: none gets out of sight."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def find(pid: int) -> Process | None:
    """The process of that number, unless it is a zombie."""
    try:
        status = _status(pid)
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # it ended meanwhile
        return None
    return None if status[0] in "ZX" else Process(pid, int(status[1]), int(status[19]), command)


def below(root: int) -> list[Process]:
    """Living processes below ``root``, itself not included."""
    everyone = {process.pid: process for process in _living()}

    def has_root_above(process: Process) -> bool:
        seen = set()
        while process.parent != root:
            if process.parent not in everyone or process.pid in seen:
                return False
            seen.add(process.pid)
            process = everyone[process.parent]
        return True

    return [process for process in everyone.values() if has_root_above(process)]


def kill(process: Process) -> bool:
    """SIGKILL, and wait for the end. False if the process had ended before."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = find(process.pid)
        if now is None or now.born != process.born:
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], 30)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def end(processes: Iterable[Process], patience_s: float) -> int:
    """SIGTERM, then SIGKILL to those that live on. Returns how many did."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while any(lives(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    return sum(kill(process) for process in processes)


def lives(process: Process) -> bool:
    """Whether the process is still there, and no zombie."""
    now = find(process.pid)
    return now is not None and now.born == process.born


def reap(known: Iterable[int]) -> None:
    """Let adopted zombies go; ``known`` children are waited for elsewhere."""
    spared = set(known)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in spared:
            with contextlib.suppress(OSError):
                state, parent = _status(int(entry.name))[:2]
                if state == "Z" and int(parent) == os.getpid():
                    os.waitpid(int(entry.name), os.WNOHANG)


def _living() -> Iterable[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := find(int(entry.name))) is not None:
            yield process


def _status(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: state, parent, …"""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()

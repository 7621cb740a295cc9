"""Runs of one spec, one after another, until enough has been killed; each is to end as an undisturbed run does."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.stn import ROOT, write_spec
from tests.fault_proxy import fault_proxy
from tests.object_store import BUCKET, seaweedfs
from tests.soak.chaos import KILLS, Faults, differences, kills_in_order, unexpected
from tests.soak.journal import Journal, elapsed_s
from tests.soak.processes import adopt_orphans, below, find, kill, reap
from tests.soak.ray_nodes import RayNodes
from workers import layout
from workers.s3 import S3Store
from workers.store import LocalStore, S3Options, Store

#: What killed drivers may leave beside a run's own objects: listed, and not held against it.
_LEFT_BEHIND = (".probe/", layout.DRIVERS, layout.FAILED, layout.PARTIAL)

_IMAGES_PER_SHARD = 8
_FAULT_SHARE = 0.2
#: Share of the kills that wait until shards have been committed since the one before.
_COMMIT_FIRST = 0.7

#: Failures after which no more is to be learnt.
_MOST_FAILURES = 5

_TICK_S = 0.1
_LOOK_S = 1.0
_TELL_S = 15.0
#: Seconds that processes have to notice that what they belonged to is gone.
_FADE_S = 20.0

EXIT_PASSED, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class Settings:
    """How long and how hard.

    Attributes:
        kills: to be done in all.
        minutes: after which the soak has failed.
        pause_s: mean time between two kills, seconds.
        nodes: that actors live on, one each; the head is one more.
        shards: of each run.
        outlasting: share of the calls held open that outlast the client's patience, a minute each.
        seed: of all choices.
        out: folder for logs, written anew.
    """

    kills: int
    minutes: float
    pause_s: float
    nodes: int
    shards: int
    outlasting: float
    seed: int
    out: Path


@dataclass
class Run:
    """A run on its way.

    Attributes:
        number: of the run in the soak, from 0.
        store: as it is, without faults.
        committed: count objects seen so far, and when each was written, seconds since the epoch.
        starts: drivers started for it.
        driver: the last one.
        output: what that one writes to.
        hit_at_end: whether a driver was to be killed while it writes the tables.
    """

    number: int
    store: Store
    committed: dict[str, float] = field(default_factory=dict)
    starts: int = 0
    driver: subprocess.Popen[bytes] | None = None
    output: Path = Path(os.devnull)
    hit_at_end: bool = False


def soak(settings: Settings) -> int:
    """Run a soak to its end, whatever that is. Returns the exit code."""
    adopt_orphans()
    for name in [name for name in os.environ if name.startswith(("RAY_", "AWS_"))]:
        del os.environ[name]
    shutil.rmtree(settings.out, ignore_errors=True)
    (settings.out / "drivers").mkdir(parents=True)
    with (
        contextlib.closing(Journal(settings.out / "log.txt", shown=True)) as journal,
        contextlib.closing(Journal(settings.out / "faults.txt")) as failed_calls,
    ):
        one = Soak(settings, Faults(_FAULT_SHARE, settings.outlasting, settings.seed, failed_calls.tell), journal)
        interrupted = False
        try:
            with _folder() as folder:
                one.run(folder)
        except RuntimeError as error:
            one.fail(str(error))
        except KeyboardInterrupt:
            interrupted = True
            one.fail("interrupted")
        except Exception as error:
            one.fail(f"the soak itself: {error!r}")
            raise
        finally:
            one.end_strays()
            journal.write(one.summary())
    return EXIT_INTERRUPTED if interrupted else EXIT_FAILED if one.failures else EXIT_PASSED


class Soak:
    """A soak, and what comes of it."""

    def __init__(self, settings: Settings, faults: Faults, journal: Journal) -> None:
        self._settings, self._faults, self._journal = settings, faults, journal
        self._random = random.Random(settings.seed)
        self._pending = kills_in_order(settings.kills, settings.seed)
        self._next_kill_s = 0.0
        self._commit_first = False
        self._killed: Counter[str] = Counter(dict.fromkeys(KILLS, 0))
        self._shot: set[int] = set()
        self._exits: Counter[str] = Counter()
        self._left: list[str] = []
        self._complete = self._equal = self._strays = 0
        self.failures: list[str] = []

    def fail(self, what: str) -> None:
        """Note a reason why the soak has not passed."""
        self.failures.append(what)
        self._journal.tell(f"FAILED: {what}")

    def run(self, folder: Path) -> None:
        """Everything, in an empty folder. Raises RuntimeError where it cannot go on."""
        spec = write_spec(
            folder,
            "undisturbed",
            dataset={"kind": "digits", "limit": self._settings.shards * _IMAGES_PER_SHARD},
            model={"name": "tests.networks:slow"},
            # A shard is not to be given up for having been in the way of a few kills.
            resources={
                "actors": self._settings.nodes,
                "shard_size": _IMAGES_PER_SHARD,
                "batch_size": 80,
                "max_attempts": 100,
            },
        )
        # Votes do not depend on the number of actors; starting more takes more time than one needs to count.
        alone = ("certify", spec, "--set", "resources.actors=1")
        undisturbed = _stn(os.environ, self._settings.out / "undisturbed.txt", *alone)
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(seaweedfs(folder / "s3"))
            proxy = stack.enter_context(fault_proxy(server.url))
            proxy.decide, proxy.hold_s = self._faults.decide, self._faults.hold_s
            os.environ.update(server.environment)
            environment = {
                **os.environ,
                "AWS_ENDPOINT_URL": proxy.url,
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_USAGE_STATS_ENABLED": "0",
                "TMPDIR": str(folder),
            }
            ray = RayNodes(folder / "ray", self._settings.nodes, environment, self._journal.tell)
            stack.callback(ray.stop)
            stack.callback(undisturbed.terminate)
            ray.start()
            self._wait_for_next_kill()
            while self._pending:
                uri = f"s3://{BUCKET}/soak-{self._complete}"
                run = Run(self._complete, S3Store(uri, S3Options(endpoint_url=server.url)))
                command = ("certify", spec, "--address", ray.address, "--run", uri)
                try:
                    self._complete_run(run, command, environment, ray, undisturbed.pid)
                finally:
                    if run.driver is not None:
                        run.driver.kill()
                        run.driver.wait()
                self._wait(undisturbed)
                self._compare(run.store, _content(LocalStore(folder / "undisturbed")))

    def _complete_run(
        self, run: Run, command: tuple[str | Path, ...], environment: Mapping[str, str], ray: RayNodes, beside: int
    ) -> None:
        """The same command again and again, until it says that it is done."""
        looked_s = told_s = elapsed_s()
        while True:
            self._check_time()
            if run.driver is None:
                run.starts += 1
                run.output = self._settings.out / "drivers" / f"run-{run.number:02d}-start-{run.starts:02d}.txt"
                run.driver = _stn(environment, run.output, *command)
                self._journal.tell(f"driver: starts, pid {run.driver.pid}, run {run.number}, start {run.starts}")
            if run.driver.poll() is not None:
                if self._judge(run) == 0:
                    self._complete += 1
                    return
                run.driver = None
                continue
            if self._kill_is_due() and self._kill(run.driver, ray):
                self._wait_for_next_kill()
            if elapsed_s() - looked_s >= _LOOK_S:
                looked_s = elapsed_s()
                ray.replace_lost()
                reap([beside, run.driver.pid, *ray.children()])
                self._look(run)
            if elapsed_s() - told_s >= _TELL_S:
                told_s = elapsed_s()
                self._journal.tell(
                    f"run {run.number}: {len(run.committed)} of {self._settings.shards} shards committed; "
                    f"{self._killed.total()} of {self._settings.kills} kills; S3: {self._faults}"
                )
            time.sleep(_TICK_S)

    def _check_time(self) -> None:
        """Raise RuntimeError if the soak has taken longer than it may."""
        if elapsed_s() > self._settings.minutes * 60:
            raise RuntimeError(f"time is up: {self._settings.minutes:g} minutes")

    def _wait(self, undisturbed: subprocess.Popen[bytes]) -> None:
        """For the run to compare with, which goes on beside the others."""
        while undisturbed.poll() is None:
            self._check_time()
            time.sleep(_TICK_S)
        if undisturbed.returncode != 0:
            raise RuntimeError(
                f"the undisturbed run ended with exit code {undisturbed.returncode}: see undisturbed.txt"
            )

    def _wait_for_next_kill(self) -> None:
        self._next_kill_s = elapsed_s() + self._settings.pause_s * self._random.uniform(0.1, 1.9)
        # Left to time alone, kills on a slow machine would all hit what is just starting.
        self._commit_first = self._random.random() < _COMMIT_FIRST

    def _kill_is_due(self) -> bool:
        return bool(self._pending) and elapsed_s() >= self._next_kill_s and not self._commit_first

    def _kill(self, driver: subprocess.Popen[bytes], ray: RayNodes) -> bool:
        """Do the next kill. False if nothing that it could hit is alive right now."""
        kind = self._pending[0]
        own = [process for process in (find(driver.pid),) if process is not None]
        candidates = own if kind == "driver" else {"actor": ray.actors, "raylet": ray.raylets, "head": ray.head}[kind]()
        if not candidates:
            return False
        victims = [*candidates, *own] if kind == "head" else [self._random.choice(candidates)]
        hit = [process for process in victims if kill(process)]
        if not hit:
            return False
        del self._pending[0]
        self._killed[kind] += 1
        self._shot.update(process.pid for process in hit)
        for process in hit:
            name = Path(process.command.split(" ")[0]).name
            self._journal.tell(f"kill {self._killed.total()}: {kind}, pid {process.pid} ({name})")
        if kind == "raylet":
            ray.lose(hit[0])
        if kind == "head":
            # Nodes without a head would end by themselves, in a minute.
            ray.kill()
            ray.start()
        return True

    def _judge(self, run: Run) -> int:
        """Whether the driver of a run ended as it may. Returns its exit code."""
        assert run.driver is not None
        code = run.driver.wait()
        said = run.output.read_text()
        last = said.strip().rpartition("\n")[2]
        self._exits[str(code)] += 1
        self._journal.tell(f"driver: ends, pid {run.driver.pid}, exit code {code}, last said: {last[:200]}")
        wrong = unexpected(code, said, killed=run.driver.pid in self._shot)
        if wrong is not None:
            self.fail(f"{run.output.name}: {wrong}")
            if len(self.failures) >= _MOST_FAILURES:
                raise RuntimeError("this goes nowhere")
        return code

    def _look(self, run: Run) -> None:
        """See what is committed, and that it stays so."""
        found = {stored.key: stored.modified for stored in run.store.list(layout.COUNTS)}
        for key, modified in run.committed.items():
            if found.get(key) != modified:
                self.fail(f"run {run.number}: {key} was committed, and then removed or written again")
        complete = len(found) == self._settings.shards
        if complete or len(found) > len(run.committed):
            self._commit_first = False
        run.committed = found
        if complete and not run.hit_at_end and "driver" in self._pending:
            # While tables are being written is the moment to kill a driver.
            run.hit_at_end = True
            self._pending.remove("driver")
            self._pending.insert(0, "driver")
            self._next_kill_s = elapsed_s() + self._random.uniform(0, _LOOK_S)

    def _compare(self, store: Store, expected: Mapping[str, bytes]) -> None:
        """A complete run, with the undisturbed one."""
        found = _content(store)
        left = sorted(key for key in found if key.startswith(_LEFT_BEHIND))
        self._left += left
        for key in left:
            self._journal.tell(f"left behind: {store.uri}/{key}")
            del found[key]
        wrong = differences(found, expected)
        for difference in wrong:
            self.fail(f"{store.uri}: {difference}")
        self._equal += not wrong
        self._journal.tell(f"{store.uri}: {len(found)} objects, {'DIFFERENT' if wrong else 'as undisturbed'}")

    def end_strays(self) -> None:
        """What should have ended with its parents gets the time to, and is then killed."""
        deadline = time.monotonic() + _FADE_S
        while (left := below(os.getpid())) and time.monotonic() < deadline:
            reap([])
            time.sleep(_TICK_S)
        for process in left:
            self._strays += kill(process)
            self._journal.tell(f"had to be killed at the end: pid {process.pid}, {process.command[:80]}")
        reap([])
        for process in below(os.getpid()):
            self.fail(f"still there: pid {process.pid}, {process.command[:80]}")

    def summary(self) -> str:
        """What happened, as a table."""
        kills = ", ".join(f"{number} {kind}" for kind, number in self._killed.items())
        exits = ", ".join(f"{number} × exit code {code}" for code, number in sorted(self._exits.items()))
        rows = {
            "result": f"FAILED, {len(self.failures)} times" if self.failures else "passed",
            "time": f"{elapsed_s():.0f} s",
            "kills": f"{self._killed.total()} of {self._settings.kills}: {kills}",
            "drivers": f"{self._exits.total()} ended: {exits}",
            "S3": str(self._faults),
            "runs": f"{self._complete} complete, {self._equal} equal to the undisturbed one, "
            f"{self._settings.shards} shards each",
            "left behind": ", ".join(f"{n} in {folder}" for folder, n in Counter(map(_top, self._left)).items()) or "-",
            "strays": f"{self._strays} processes had to be killed at the end",
        }
        return "\n".join(["", *(f"{name:12} {text}" for name, text in rows.items()), *map(str, self.failures)])


def _stn(environment: Mapping[str, str], output: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """`stn ARGUMENTS` in the background, all it says in a file."""
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for all that is not a log. Ray's sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="stn-soak-", dir="/tmp"))
    try:
        (folder / "ray").mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _content(store: Store) -> dict[str, bytes]:
    """All objects of a run, but for the plan, which names the place."""
    return {found.key: store.read(found.key) for found in store.list("") if found.key != layout.PLAN}


def _top(key: str) -> str:
    return key.partition("/")[0] + "/"

"""Machines made of Linux namespaces: each with its own network, processes, home and sshd, all with this file system.

A machine is its sshd, the first process of a process namespace: when that dies, the kernel ends all that runs there
and takes the machine's interfaces and mounts away. The network between machines is a namespace that ends likewise, with
its bridge and the one interface on this machine. So nothing outlives this process, even when it is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.stn import wait_for

#: Home of root on every machine.
HOME = "/run/home"
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount", "sshd", "ssh", "ssh-keygen", "rsync", "hostname")
_NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")

# Private are what changes while it runs, the home folder and names. All else is shared, Python's environment among it.
_BOOT = """\
set -e
hostname {name}
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/tmp {home}
mount --bind {folder}/home {home}
mount -t tmpfs tmpfs /dev/shm
mount --bind {folder}/passwd /etc/passwd
mount --bind {hosts} /etc/hosts
exec {sshd} -D -e -f {config}
"""

_SSHD = """\
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
PrintMotd no
PrintLastLog no
"""


def missing() -> str:
    """What this machine lacks to make others; empty where nothing is."""
    if os.geteuid() != 0:
        return "root"
    lacking = [tool for tool in _TOOLS if shutil.which(tool, path=_search_path()) is None]
    if lacking:
        return f"the programs {', '.join(lacking)} (Debian: apt-get install openssh-server rsync iproute2)"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "sh", "-c", "ip link add probe0 type bridge && mount -t tmpfs tmpfs /run"],
        capture_output=True,
        text=True,
    )
    return f"namespaces, bridges and mounts ({tried.stderr.strip()})" if tried.returncode != 0 else ""


@dataclass
class Machine:
    """One of the machines.

    Attributes:
        name: its host name.
        address: its IPv4 address on the machines' network.
        folder: its disk, which outlives it: home and log of sshd.
    """

    name: str
    address: str
    folder: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def home(self) -> Path:
        """Its home folder, as seen from here."""
        return self.folder / "home"


class Network:
    """Machines joined by a bridge, and this machine with them.

    Args:
        folder: for keys, disks and logs.
        names: host names, one for each machine.
    """

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self._folder = folder
        self._prefix = _free_prefix()
        self.here = f"{self._prefix}.1"
        self.machines = tuple(
            Machine(name, f"{self._prefix}.{number}", folder / name) for number, name in enumerate(names, 2)
        )
        self._cables = itertools.count()
        self._write_files()
        self._bridge = _in_namespaces("--net", "--fork", "--kill-child", "sleep", "infinity")
        try:
            self._join_here()
        except BaseException:
            _end(self._bridge)
            raise

    @property
    def key(self) -> Path:
        """The private key that opens every machine to root."""
        return self._folder / "key"

    def set_login_environment(self, environment: Mapping[str, str]) -> None:
        """Variables of every login from now on."""
        own = {"PATH": _search_path(), "TMPDIR": "/run/tmp"}
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in {**own, **environment}.items()]
        for machine in self.machines:
            (machine.home / ".bash_profile").write_text("".join([*lines, ". ~/.bashrc\n"]))

    def boot(self, machine: Machine) -> None:
        """Start a machine, and return when it takes logins."""
        script = _BOOT.format(
            name=machine.name,
            folder=shlex.quote(str(machine.folder)),
            hosts=shlex.quote(str(self._folder / "hosts")),
            home=HOME,
            sshd=shutil.which("sshd", path=_search_path()),
            config=shlex.quote(str(self._folder / "sshd_config")),
        )
        with (machine.folder / "log").open("ab") as log:
            machine._process = _in_namespaces(*_NAMESPACES, "sh", "-c", script, log=log.fileno())
        init = _first_child(machine._process)
        # A new cable each time, since the kernel may take a moment to clear the last one away; but the same card.
        cable = f"cable{next(self._cables)}"
        card = "02:00:" + ":".join(f"{int(number):02x}" for number in machine.address.split("."))
        _ip(f"link add {cable} type veth peer name eth0 address {card} netns {init}", inside=self._switch())
        _ip(f"link set {cable} master bridge0 up", inside=self._switch())
        _ip("link set lo up", inside=init)
        _ip(f"addr add {machine.address}/24 dev eth0", inside=init)
        _ip("link set eth0 up", inside=init)
        wait_for(lambda: answers(machine.address, 22), f"login to {machine.name}: {machine.folder / 'log'}", 30)

    def kill(self, machine: Machine) -> None:
        """Cut a machine's power: SIGKILL to all that runs there. Its disk is kept."""
        if machine._process is not None:
            _end(machine._process)
            machine._process = None

    def close(self) -> None:
        """End all machines and their network."""
        for machine in self.machines:
            self.kill(machine)
        _end(self._bridge)

    def run(self, machine: Machine, command: str) -> str:
        """What ``command`` prints when root logs in to a machine by ssh and runs it."""
        options = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={os.devnull}", "LogLevel=ERROR", "BatchMode=yes")
        return subprocess.run(
            [
                *("ssh", "-i", str(self.key), *(part for option in options for part in ("-o", option))),
                *(f"root@{machine.address}", f"bash --login -c {shlex.quote(command)}"),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def _switch(self) -> int:
        return _first_child(self._bridge)

    def _join_here(self) -> None:
        mine = f"stn{os.getpid()}"
        _ip("link add bridge0 type bridge", inside=self._switch())
        _ip("link set bridge0 up", inside=self._switch())
        _ip(f"link add {mine} type veth peer name here netns {self._switch()}")
        _ip("link set here master bridge0 up", inside=self._switch())
        _ip(f"addr add {self.here}/24 dev {mine}")
        _ip(f"link set {mine} up")

    def _write_files(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._folder / name], check=True)
        (self._folder / "sshd_config").write_text(_SSHD.format(folder=self._folder))
        names = [f"{machine.address} {machine.name}\n" for machine in self.machines]
        (self._folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *names]))
        # Everybody's home is as it was, but root's.
        passwd = "".join(
            ":".join([user.pw_name, "x", str(user.pw_uid), str(user.pw_gid), "", home, shell]) + "\n"
            for user in pwd.getpwall()
            for home, shell in [(HOME, "/bin/bash") if user.pw_uid == 0 else (user.pw_dir, user.pw_shell)]
        )
        for machine in self.machines:
            machine.home.mkdir(parents=True)
            (machine.home / ".bashrc").touch()
            (machine.folder / "passwd").write_text(passwd)
        self.set_login_environment({})


@contextlib.contextmanager
def network(folder: Path, names: tuple[str, ...]) -> Iterator[Network]:
    """Machines for the time of the block, all of them booted."""
    made = Network(folder, names)
    try:
        for machine in made.machines:
            made.boot(machine)
        yield made
    finally:
        made.close()


def _search_path() -> str:
    """Where a machine finds programs: not in the environment that these tests happen to run in."""
    own = Path(sys.prefix) / "bin"
    here = [folder for folder in os.environ.get("PATH", "").split(":") if folder and Path(folder) != own]
    return ":".join([*here, "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


def _in_namespaces(*command: str, log: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """A process in namespaces of its own, which dies with this one whatever happens."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:  # it ended
        return []


def _first_child(process: subprocess.Popen[bytes]) -> int:
    """The process that ``unshare --fork`` started in its namespaces."""
    wait_for(lambda: bool(_children(process)), "process in new namespaces", 10)
    return _children(process)[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill namespaces' first process, and with it all others there; wait until they are gone."""
    for child in _children(process) or [process.pid]:
        os.kill(child, signal.SIGKILL)
    process.wait()


def _ip(command: str, inside: int | None = None) -> None:
    """`ip COMMAND`, here or in the network namespace of a process."""
    enter = [] if inside is None else ["nsenter", f"--net=/proc/{inside}/ns/net"]
    done = subprocess.run([*enter, "ip", *command.split()], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {command}: {done.stderr.strip()}")


def _free_prefix() -> str:
    """The first three numbers of a private network that this machine has no route to but the default."""
    routes = subprocess.run(["ip", "-4", "route"], check=True, capture_output=True, text=True).stdout
    return next(prefix for prefix in (f"10.213.{number}" for number in range(254)) if f"{prefix}." not in routes)


def answers(address: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False

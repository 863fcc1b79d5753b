"""A real Slurm cluster with several nodes on this machine, to try things out and to test failures."""

import dataclasses
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.slurm.lab import hosts as lab_hosts
from ropewalk.slurm.lab.config import (
    MOST_LABS,
    MOST_NODES,
    LabLocation,
    LabSettings,
    gres_conf,
    names,
    skip_delay_script,
    slurm_conf,
)
from ropewalk.slurm.lab.daemons import PATH, Daemons
from ropewalk.slurm.lab.folder import refuse_foreign
from ropewalk.slurm.lab.processes import kill_all, lab_processes, on_nodes

LONGEST_FOLDER = 60  # characters; the sockets of steps are below it, and the path of a socket has at most 107
NEEDED = ("slurmctld", "slurmd", "sinfo", "munged", "setsid")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
NAMESPACES = ("unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child=KILL", "--mount-proc")
# gives the node its own processes, host name and shared memory; the shell remains as init and reaps orphans
NODE_SCRIPT = 'hostname "$1"; mount -t tmpfs tmpfs /dev/shm; slurmd -D -N "$1" & wait'
TURN = "\0ropewalk-slurm-lab"  # an abstract socket as a lock: a single process can bind it, and it ends with that process
TURN_SECONDS = 60.0
LATE_MESSAGES_SECONDS = 2.0  # messages of a killed daemon can still arrive and would put its node back into service


def missing_programs() -> str:
    """Return which programs a lab needs that are not installed, and how to install them; empty if none."""
    if absent := [n for n in NEEDED if not shutil.which(n, path=PATH)]:
        return f"{', '.join(absent)} not found; on Debian or Ubuntu: {INSTALL}"
    return ""


class Lab:
    """A test cluster. All its state is in `folder`, so that any process can stop the cluster or a node.

    Daemons run files of the folder, so it must not be writable by other users; raises ConfigError if it is. As root, each node
    is a PID namespace; otherwise all daemons and jobs run as the current user.
    """

    def __init__(self, folder: Path) -> None:
        refuse_foreign(folder)
        self.folder = folder.resolve()
        self.conf = self.folder / "etc/slurm.conf"
        self.daemons = Daemons(self.folder)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with which Slurm's commands use this cluster."""
        return self.daemons.env

    @property
    def exists(self) -> bool:
        """Return True between `up` and `down`."""
        return self._record_file.exists()

    @property
    def alive(self) -> bool:
        """Return True if the controller runs."""
        return bool(lab_processes(self.folder, "slurmctld"))

    @property
    def settings(self) -> LabSettings:
        return LabSettings(**self._record["settings"])

    @property
    def nodes(self) -> list[str]:
        return names(self.location, self.settings)

    @property
    def location(self) -> LabLocation:
        """Ports, addresses and names of the lab."""
        return LabLocation(folder=self.folder, **self._record["location"])

    @property
    def isolated(self) -> bool:
        """Return True if every node has its own namespaces."""
        return bool(self._record["isolated"])

    def up(self, settings: LabSettings | None = None) -> None:
        """Start the cluster; return as soon as all nodes are idle.

        Raises ConfigError if a program is missing or `folder` is in use, BackendError if the cluster does not start.
        """
        settings = settings or LabSettings()
        self._check(settings)
        # an existing folder of this user keeps its mode
        self.folder.mkdir(mode=0o755 if settings.users else 0o700, parents=True, exist_ok=True)
        refuse_foreign(self.folder)  # again, now that it exists
        with _one_at_a_time():
            try:
                self._configure(settings)
                self._start_all(settings)
            except BaseException:
                self.down()
                raise

    def down(self) -> None:
        """Stop all processes of the lab and remove its folder, whatever its state; do nothing without a lab."""
        if not self.exists:
            return
        kill_all(lambda: on_nodes(self.folder, self.nodes))
        kill_all(lambda: lab_processes(self.folder))
        lab_hosts.remove(self.folder)
        shutil.rmtree(self.folder)

    def kill_node(self, name: str) -> None:
        """Simulate a power failure: all processes of a node die at once, without notice to Slurm."""
        self._check_name(name)
        kill_all(lambda: on_nodes(self.folder, [name]))

    def start_node(self, name: str) -> None:
        """Start a node again; return as soon as it accepts jobs."""
        self._check_name(name)
        self._launch_node(name)
        port = self.location.node_port(self.nodes.index(name) + 1)
        # first the port: Slurm may not have noticed that the node was away
        self.daemons.wait_until(lambda: _is_taken(port), f"{name}'s slurmd listens")
        self.daemons.wait_until(lambda: self.states()[name] in {"idle", "mixed", "allocated"}, f"{name} accepts jobs")

    def fail_node(self, name: str) -> None:
        """Simulate a power failure that Slurm notices immediately instead of after its timeout."""
        self._check_name(name)
        # drained, the node gets no jobs while late messages of its daemon may still put it back into service
        self._set_state(name, "drain")
        self.kill_node(name)

        def stays_down() -> bool:
            self._set_state(name, "down")
            time.sleep(LATE_MESSAGES_SECONDS)
            return "State=DOWN" in self.command("scontrol", "show", "node", name)

        self.daemons.wait_until(stays_down, f"{name} stays down")
        self._set_state(name, "undrain")

    def _set_state(self, name: str, state: str) -> None:
        self.command("scontrol", "update", f"nodename={name}", f"state={state}", "reason=power")

    def start_controller(self) -> None:
        """Start slurmctld from its saved state; return as soon as it answers."""
        self.daemons.launch("slurmctld", "slurmctld")
        # wait for the port first: a command that finds it closed sleeps for a second
        self.daemons.wait_until(lambda: _is_taken(self.location.port), "slurmctld listens")
        self.daemons.wait_until(lambda: self.daemons.answers("sinfo"), "slurmctld answers")

    def kill_controller(self) -> None:
        self.daemons.kill("slurmctld")

    def states(self) -> dict[str, str]:
        """Return each node's state as Slurm prints it: idle, mixed, down*. Raises BackendError if slurmctld does not answer."""
        lines = self.command("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return {name: state for name, _, state in (line.partition(" ") for line in lines)}

    def command(self, *arguments: str, seconds: float = 30.0) -> str:
        """Run one of Slurm's commands on this cluster and return its output. Raises BackendError if it fails."""
        return self.daemons.command(*arguments, seconds=seconds)

    def _check(self, settings: LabSettings) -> None:
        if remedy := missing_programs():
            raise ConfigError(f"a Slurm test cluster needs Slurm: {remedy}")
        if self.exists:
            raise ConfigError(f"{self.folder}: already has a lab; stop it first: ropewalk lab slurm down {self.folder}")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} is not empty; name a new folder, because `down` removes it")
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise ConfigError(
                f"{self.folder} has more than {LONGEST_FOLDER} characters, too long for sockets; name a shorter path"
            )
        if not 1 <= settings.nodes <= MOST_NODES:
            raise ConfigError(f"nodes={settings.nodes}: a lab has 1 to {MOST_NODES} nodes")

    def _check_name(self, name: str) -> None:
        if name not in self.nodes:
            raise ConfigError(f"no node {name!r} in {self.folder}; the nodes are {', '.join(self.nodes)}")

    def _configure(self, settings: LabSettings) -> None:
        """Choose ports and names, and write the configuration files."""
        block = next((b for b in range(MOST_LABS) if _is_free(b)), None)
        if block is None:
            raise BackendError(f"this machine already has {MOST_LABS} labs; stop one of them")
        host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name
        location = LabLocation(folder=self.folder, block=block, host=host, user=user, named=True)
        hosts = {location.name(node): location.address(node) for node in range(1, settings.nodes + 1)}
        location = dataclasses.replace(location, named=lab_hosts.can_resolve(hosts))
        for name in ("etc", "run", "log", "state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o700 if name in {"state", "munge"} else 0o755)
        for name in names(location, settings):
            (self.folder / "spool" / name).mkdir()
        fields = {key: value for key, value in dataclasses.asdict(location).items() if key != "folder"}
        record = {"settings": dataclasses.asdict(settings), "location": fields, "isolated": _can_isolate()}
        write_json(self._record_file, record)
        if location.named:
            lab_hosts.add(hosts, self.folder)  # after the record, without which `down` would not remove the lines
        self._write_files(location, settings)

    def _write_files(self, location: LabLocation, settings: LabSettings) -> None:
        etc = self.folder / "etc"
        (etc / "slurm.conf").write_text(slurm_conf(location, settings))
        (etc / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (etc / "gres.conf").write_text(gres_conf(self.folder, settings))
        for number in range(settings.gpus):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")
        (etc / "hurry.sh").write_text(skip_delay_script(self.folder, PATH))
        (etc / "hurry.sh").chmod(0o755)
        key = self.folder / "munge/key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)

    def _start_all(self, settings: LabSettings) -> None:
        self._start_munged()
        self.start_controller()
        for name in self.nodes:
            self._launch_node(name)
        self.daemons.wait_until(lambda: set(self.states().values()) == {"idle"}, "all nodes are idle")

    def _start_munged(self) -> None:
        folder = self.folder
        options = [f"--socket={self.location.munge_socket}", f"--key-file={folder}/munge/key", f"--seed-file={folder}/munge/seed"]
        options += [f"--log-file={folder}/log/munged.log", f"--pid-file={folder}/run/munged.pid", "--num-threads=8"]
        self.daemons.launch("munged", "munged", "--force", *options)  # --force: accept folders below /tmp

    def _launch_node(self, name: str) -> None:
        if self.isolated:
            self.daemons.launch(name, *NAMESPACES, "bash", "-c", NODE_SCRIPT, "node", name, foreground=True)
        else:
            self.daemons.launch(name, "slurmd", "-N", name)

    @property
    def _record_file(self) -> Path:
        return self.folder / "lab.json"

    @property
    def _record(self) -> dict[str, Any]:
        record = read_json(self._record_file)
        if not record:
            raise ConfigError(f"{self.folder}: no lab here; start one with `ropewalk lab slurm up {self.folder}`")
        return dict(record)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Serialize the start of labs, so that no two choose the same ports."""
    deadline = time.monotonic() + TURN_SECONDS
    with closing(socket.socket(socket.AF_UNIX)) as turn:
        while True:
            try:
                turn.bind(TURN)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise BackendError(f"another lab has been starting for more than {TURN_SECONDS:g} s") from None
                time.sleep(0.05)
        yield


def _is_free(block: int) -> bool:
    """Return True if no port of a block is in use."""
    return not any(map(_is_taken, LabLocation(folder=Path(), block=block, host="", user="", named=False).ports))


def _is_taken(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections that were closed just now
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _can_isolate() -> bool:
    if os.geteuid() != 0:
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0

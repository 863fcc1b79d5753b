"""A real Slurm cluster of several nodes on this machine, to try things on and to break."""

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
from ropewalk.slurm.lab.config import MOST_LABS, MOST_NODES, LabSettings, Place, names, skip_delay_script, slurm_conf
from ropewalk.slurm.lab.daemons import PATH, Daemons
from ropewalk.slurm.lab.folder import refuse_foreign
from ropewalk.slurm.lab.processes import kill_all, marked, on_nodes

LONGEST_FOLDER = 60  # a step's socket lies below it, and a socket's path ends at 107 characters
NEEDED = ("slurmctld", "slurmd", "sinfo", "munged", "setsid")
INSTALL = "apt-get install --no-install-recommends slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
NAMESPACES = ("unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child=KILL", "--mount-proc")
# the node sees its own processes, host name and shared memory; the shell stays as init, which reaps orphans
NODE_SCRIPT = 'hostname "$1"; mount -t tmpfs tmpfs /dev/shm; slurmd -D -N "$1" & wait'
TURN = "\0ropewalk-slurm-lab"  # an abstract socket: only one process of the machine binds it, and it goes with that process
TURN_SECONDS = 60.0
LAST_WORDS_SECONDS = 2.0  # what a dead daemon has sent may still be on its way, and would put its node back into service


def missing() -> str:
    """What to install before there can be a lab; empty: everything is there."""
    if absent := [n for n in NEEDED if not shutil.which(n, path=PATH)]:
        return f"{', '.join(absent)} not found; on Debian or Ubuntu: {INSTALL}"
    return ""


class Lab:
    """One cluster. All of it lies in `folder`, so another process may take it down, or a node of it.

    Nobody else could have put anything into the folder, since daemons run what lies there. Raises ConfigError otherwise.
    As root every node is a PID namespace of its own; as any other user all daemons and jobs are that user's.
    """

    def __init__(self, folder: Path) -> None:
        refuse_foreign(folder)
        self.folder = folder.resolve()
        self.conf = self.folder / "etc/slurm.conf"
        self.daemons = Daemons(self.folder)

    @property
    def env(self) -> dict[str, str]:
        """What Slurm's commands need in their environment to find this cluster."""
        return self.daemons.env

    @property
    def exists(self) -> bool:
        """Whether a lab was brought up here and not down since."""
        return self._record_file.exists()

    @property
    def alive(self) -> bool:
        """Whether the controller runs."""
        return bool(marked(self.folder, "slurmctld"))

    @property
    def settings(self) -> LabSettings:
        """The settings that the lab was brought up with."""
        return LabSettings(**self._record["settings"])

    @property
    def nodes(self) -> list[str]:
        """The nodes' names."""
        return names(self.place, self.settings)

    @property
    def place(self) -> Place:
        """The lab's ports, addresses and names."""
        return Place(folder=self.folder, **self._record["place"])

    @property
    def isolated(self) -> bool:
        """Whether every node has namespaces of its own."""
        return bool(self._record["isolated"])

    def up(self, settings: LabSettings | None = None) -> None:
        """Start the cluster; return when all nodes are idle.

        Raises ConfigError when something is not installed or `folder` is taken, BackendError when it does not start.
        """
        settings = settings or LabSettings()
        self._check(settings)
        # an own folder that is there already is as open as this user wants it to be
        self.folder.mkdir(mode=0o755 if settings.users else 0o700, parents=True, exist_ok=True)
        refuse_foreign(self.folder)  # as it is now
        with _one_at_a_time():
            try:
                self._settle(settings)
                self._start_all(settings)
            except BaseException:
                self.down()
                raise

    def down(self) -> None:
        """End all of the lab and remove its folder, whatever state it is in; do nothing where there is no lab."""
        if not self.exists:
            return
        kill_all(lambda: on_nodes(self.folder, self.nodes))
        kill_all(lambda: marked(self.folder))
        lab_hosts.remove(self.folder)
        shutil.rmtree(self.folder)

    def kill_node(self, name: str) -> None:
        """Cut a node's power: everything that runs on it dies at once, and Slurm is not told."""
        self._check_name(name)
        kill_all(lambda: on_nodes(self.folder, [name]))

    def start_node(self, name: str) -> None:
        """Give a node its power back; return when it takes jobs again."""
        self._check_name(name)
        self._launch_node(name)
        port = self.place.node_port(self.nodes.index(name) + 1)
        self.daemons.wait_until(lambda: _is_taken(port), f"{name}'s slurmd listens")  # Slurm may not know that it was away
        self.daemons.wait_until(lambda: self.states()[name] in {"idle", "mixed", "allocated"}, f"{name} takes jobs")

    def fail_node(self, name: str) -> None:
        """Cut a node's power, and let Slurm find out at once instead of after its timeout."""
        self._check_name(name)
        # what its daemon has said last may put it back into service, and until that is undone it must get no job
        self._set_state(name, "drain")
        self.kill_node(name)

        def stays_down() -> bool:
            self._set_state(name, "down")
            time.sleep(LAST_WORDS_SECONDS)
            return "State=DOWN" in self.command("scontrol", "show", "node", name)

        self.daemons.wait_until(stays_down, f"{name} stays down")
        self._set_state(name, "undrain")

    def _set_state(self, name: str, state: str) -> None:
        self.command("scontrol", "update", f"nodename={name}", f"state={state}", "reason=power")

    def start_controller(self) -> None:
        """Start slurmctld from its saved state; return when it answers."""
        self.daemons.launch("slurmctld", "slurmctld")
        # the port first: a command that finds it closed sleeps for a second
        self.daemons.wait_until(lambda: _is_taken(self.place.port), "slurmctld listens")
        self.daemons.wait_until(lambda: self.daemons.answers("sinfo"), "slurmctld answers")

    def kill_controller(self) -> None:
        """Kill the controller; nodes and jobs go on."""
        self.daemons.kill("slurmctld")

    def states(self) -> dict[str, str]:
        """Every node's state in Slurm's words, such as idle, mixed, allocated, down*. BackendError if slurmctld is away."""
        lines = self.command("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return {name: state for name, _, state in (line.partition(" ") for line in lines)}

    def command(self, *words: str, seconds: float = 30.0) -> str:
        """Run one of Slurm's commands against this cluster; its output. BackendError if it fails."""
        return self.daemons.command(*words, seconds=seconds)

    def _check(self, settings: LabSettings) -> None:
        if remedy := missing():
            raise ConfigError(f"a Slurm test cluster needs Slurm: {remedy}")
        if self.exists:
            raise ConfigError(f"{self.folder}: a lab is there already; take it down first: ropewalk lab slurm down {self.folder}")
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} is not empty; name a new folder, since `down` removes it")
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise ConfigError(f"{self.folder} is longer than {LONGEST_FOLDER} characters; sockets lie in it, name a shorter one")
        if not 1 <= settings.nodes <= MOST_NODES:
            raise ConfigError(f"nodes={settings.nodes}: a lab has 1 to {MOST_NODES}")

    def _check_name(self, name: str) -> None:
        if name not in self.nodes:
            raise ConfigError(f"no node {name!r} in {self.folder}; there are {', '.join(self.nodes)}")

    def _settle(self, settings: LabSettings) -> None:
        """Choose ports and names, and write the configuration down."""
        block = next((b for b in range(MOST_LABS) if _is_free(b)), None)
        if block is None:
            raise BackendError(f"there are {MOST_LABS} labs on this machine; take one down")
        host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name
        place = Place(folder=self.folder, block=block, host=host, user=user, named=True)
        hosts = {place.name(node): place.address(node) for node in range(1, settings.nodes + 1)}
        place = dataclasses.replace(place, named=lab_hosts.can_resolve(hosts))
        for name in ("etc", "run", "log", "state", "spool", "munge"):
            (self.folder / name).mkdir(mode=0o700 if name in {"state", "munge"} else 0o755)
        for name in names(place, settings):
            (self.folder / "spool" / name).mkdir()
        written = {key: value for key, value in dataclasses.asdict(place).items() if key != "folder"}
        record = {"settings": dataclasses.asdict(settings), "place": written, "isolated": _can_isolate()}
        write_json(self._record_file, record)
        if place.named:
            lab_hosts.add(hosts, self.folder)  # after the record, by which `down` knows that there is something to remove
        self._write_files(place, settings)

    def _write_files(self, place: Place, settings: LabSettings) -> None:
        etc = self.folder / "etc"
        (etc / "slurm.conf").write_text(slurm_conf(place, settings))
        (etc / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
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
        words = [f"--socket={self.place.munge_socket}", f"--key-file={folder}/munge/key", f"--seed-file={folder}/munge/seed"]
        words += [f"--log-file={folder}/log/munged.log", f"--pid-file={folder}/run/munged.pid", "--num-threads=8"]
        self.daemons.launch("munged", "munged", "--force", *words)  # --force: it would not have folders below /tmp

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
            raise ConfigError(f"{self.folder}: no lab there; ropewalk lab slurm up {self.folder}")
        return dict(record)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Labs come up one after the other, so that no two choose the same ports."""
    deadline = time.monotonic() + TURN_SECONDS
    with closing(socket.socket(socket.AF_UNIX)) as turn:
        while True:
            try:
                turn.bind(TURN)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise BackendError(f"another lab has been coming up for more than {TURN_SECONDS:g} s") from None
                time.sleep(0.05)
        yield


def _is_free(block: int) -> bool:
    """Whether nobody listens on any port of a block."""
    return not any(map(_is_taken, Place(folder=Path(), block=block, host="", user="", named=False).ports))


def _is_taken(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that ended a moment ago does not count
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def _can_isolate() -> bool:
    if os.geteuid() != 0:
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0

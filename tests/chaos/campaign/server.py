"""The serving run of a campaign: its disks, its clock, and its processes."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from ropewalk.cluster.process.kill import end, processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.submit.submit import configure, submit
from ropewalk.jobs.serving.serve.files import ServingFiles
from tests.fakes.engine import fake_model
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[3]
MODEL = "words"
SLOTS = 4
DISKS = {"runs": 256, "tmp": 256, "capture": 512}  # MiB; two hours capture some 100
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
FILLER = "filler"


class Server:
    """A serving run with one gateway and several replicas."""

    def __init__(self, home: Path, replicas: int, token_seconds: float) -> None:
        self.home, self.token = home, "a-token-of-the-campaign"
        self.skipped: dict[str, str] = {}  # faults that this machine does not allow, and why
        self.disks: dict[str, Path] = {}
        self.clock = home / "clock"
        for name in ("runs", "tmp"):
            (home / name).mkdir()
            self._mount(name, home / name)
        self._environment()
        model = fake_model(home / "runs/model", says="words")
        promote(str(model), name=MODEL, root=home / "runs", force="a campaign")
        engine = [sys.executable, "-S", str(ROOT / "tests/fakes/answering_engine.py"), "{port}", "--slots", "{slots}"]
        settings: dict[str, Any] = {
            "model": "production",
            "engine_command": [*engine, "--token", str(token_seconds), "--way", "replay"],
            "replicas": replicas,
            "slots": SLOTS,
            "queue_seconds": 180,  # Ray is killed again while its replicas load, which takes 20 s each time
            "auth": "SERVE_TOKEN",
            "capture": {"share": 1.0},
            "resources.cpus": 2,
            "resources.grace_seconds": 60,
            "retries.bugs": 0,
        }
        keys = [f"{key}={value if isinstance(value, str) else _json(value)}" for key, value in settings.items()]
        self.run: RunDir = submit("serve", configure("serve", None, keys))
        self.feedback = self.run.path / "feedback"
        self.feedback.mkdir(exist_ok=True)
        self._mount("capture", self.feedback)
        self.files = ServingFiles(self.run)
        until(lambda: len(self.replicas()) == replicas, Patience.CLUSTER, self.tail)
        self.address = str((read_json(self.files.address) or {})["address"])
        self.port = int(self.address.rpartition(":")[2])

    def _environment(self) -> None:
        values = {
            "ROPEWALK_RUNS": self.home / "runs",
            "TMPDIR": self.home / "tmp",
            "WANDB_MODE": "disabled",
            "SERVE_TOKEN": self.token,
        }
        if FAKETIME is None:
            self.skipped["clock"] = "libfaketime is not installed; apt-get install faketime"
        else:
            self.set_clock(0)
            values |= {"LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": self.clock, "FAKETIME_CACHE_DURATION": "1"}
            values |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}
        os.environ.update({name: str(value) for name, value in values.items()})

    def _mount(self, name: str, path: Path) -> None:
        size = f"size={DISKS[name]}m,mode=700"
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "campaign", str(path)], capture_output=True, check=False)
        if mounted.returncode == 0:
            self.disks[name] = path
        else:
            self.skipped[f"full {name} disk"] = f"mount: {mounted.stderr.decode().strip() or 'needs root'}"

    # --- state

    def replicas(self) -> list[dict[str, Any]]:
        versions = (read_json(self.files.routes) or {}).get("versions") or {}
        return [replica for version in versions.values() for replica in version.get("replicas") or ()]

    def tail(self) -> str:
        logs = self.run.log_dir(self.run.attempts()[-1]) if self.run.attempts() else self.run.path
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in sorted(logs.glob("*.log")))

    def log_text(self) -> Iterator[tuple[str, str]]:
        """Yield the name and content of the logs of gateway, controller and writer."""
        for log in sorted(self.run.path.glob("attempts/*/logs/*.log")):
            if log.name.startswith(("gateway", "controller")):
                yield f"{log.parent.parent.name}/{log.name}", log.read_text(errors="replace")

    # --- processes

    def processes(self, pattern: str) -> list[psutil.Process]:
        """Return this run's processes whose command line contains the pattern."""
        matches = []
        for process in processes_of(self.home):
            with suppress(psutil.Error):
                if pattern in " ".join(process.cmdline()):
                    matches.append(process)
        return matches

    def gateway(self) -> psutil.Process | None:
        """Return the gateway that answers at the moment: the one that holds a new connection."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=30) as probe:
            probe.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            if not probe.recv(64):
                return None
            holders = [each for each in self.processes("serving.serve.gateway") if _holds(each, probe.getsockname()[1])]
            parents = {each.ppid() for each in holders}  # a parent may hold a copy of each connection
            return next((each for each in holders if each.pid not in parents), None)
        return None

    def part(self, name: str) -> psutil.Process | None:
        """Return the process of a part: gateway, controller or writer."""
        if name == "gateway":
            return self.gateway()
        patterns = {"controller": "serving.serve.controller", "writer": "serving.feedback.writer"}
        return max(self.processes(patterns[name]), key=lambda process: process.create_time(), default=None)

    # --- faults

    def set_clock(self, seconds: int) -> None:
        """Put the clock of the run forward, or back."""
        temporary = self.clock.with_suffix(".new")
        temporary.write_text(f"{seconds:+d}\n")
        temporary.rename(self.clock)

    def fill(self, disk: str) -> None:
        with (self.disks[disk] / FILLER).open("ab", buffering=0) as file:
            for size in (2**20, 4096):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self, disk: str) -> None:
        (self.disks[disk] / FILLER).unlink(missing_ok=True)

    # --- end

    def stop(self) -> str:
        """Cancel the run and return its state."""
        list(cancel_runs([self.run.id]))
        until(lambda: (outcome := self.run.last_outcome()) is not None and outcome.state.final, Patience.CLUSTER, self.tail)
        outcome = self.run.last_outcome()
        assert outcome is not None
        return outcome.state.value


@contextmanager
def serving(replicas: int, token_seconds: float) -> Iterator[Server]:
    """A serving run with disks and a clock of its own; its processes and files are removed at the end."""
    home, environment = Path(tempfile.mkdtemp(prefix="c-", dir="/tmp")), dict(os.environ)
    try:
        yield Server(home, replicas, token_seconds)
    finally:
        os.environ.clear()
        os.environ.update(environment)
        end(processes_of(home))
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f" {home}/" in line]
        for mount in reversed(mounts):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(home, ignore_errors=True)


def _holds(process: psutil.Process, client_port: int) -> bool:
    with suppress(psutil.Error):
        return any(each.raddr and each.raddr[1] == client_port for each in process.net_connections("tcp4"))
    return False


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


def kill(process: psutil.Process | None) -> float | None:
    """Kill a process and return the moment before; None if there is none."""
    if process is None:
        return None
    moment = time.monotonic()
    with suppress(psutil.Error):
        process.kill()
    return moment

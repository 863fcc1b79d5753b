"""A sidecar that mirrors a run's metrics, events and node samples into W&B, and never disturbs the run.

Usage: python -m jobs.tracking.wandb_sync RUN_DIR --attempt N
Started beside the agent of node 0; SIGHUP: mirror what is left, close the W&B run, exit.
"""

import argparse
import json
import logging
import netrc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, BackendError
from cluster.process.signals import SignalFlag
from cluster.run.directory import RunDir
from cluster.run.event_log import is_event
from cluster.run.file_systems import look_seconds
from cluster.run.files import read_json, write_json
from jobs.registry import view_class
from jobs.tracking.metrics import OWN_KEYS, read_new_lines

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
FLUSH_SECONDS = 1  # how often W&B's own file is flushed
SAFE_SECONDS = 2.5  # what was handed over longer ago is on disk whatever happens to this process
CLOSE_SECONDS = 8.0  # a server that is down must not hold up the agent
CURSOR = "cursor.json"
SUMMARY = "summary"  # in the cursor: the checksum of what the summary of the W&B run was told
SUMMARY_SECONDS = 15.0  # between two looks at what the summary should hold


def main() -> None:
    """Mirror one attempt to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--replay", action="store_true", help="mirror what an earlier sidecar left over, and exit")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s mirror %(message)s")
    if os.environ.get("WANDB_MODE") == "disabled":
        return  # nobody would see it; `ropewalk sync` mirrors all of it, should somebody want to
    os.nice(5)  # training comes first
    Mirror(RunDir(arguments.run_dir), arguments.attempt).follow(arguments.replay)


class Mirror:
    """Mirrors one attempt. The cursor file says how much of each source file is known to be in W&B's files."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self.run, self.attempt = run, attempt
        self._ended = SignalFlag()
        self._parent = os.getppid()
        self._cursor_path = run.wandb / CURSOR
        self._offsets: dict[str, int] = dict(read_json(self._cursor_path) or {})
        self._handed_over: deque[tuple[float, dict[str, int]]] = deque()
        self._view, self._next_summary = _view(run), 0.0
        self._step = 0
        self._wandb: Any = None

    def follow(self, replay: bool = False) -> None:
        """Mirror until SIGHUP, the end of the agent, or a newer attempt (at once for a replay); then to the end of the files."""
        signal.signal(signal.SIGHUP, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._wandb = start_wandb(self.run, self.attempt)
        if replay:
            self._ended.set()
        pause_seconds = max(POLL_SECONDS, look_seconds(self.run.path))
        while not self._over():
            self._pump()
            self._ended.wait(pause_seconds)
        self._close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._ended.set()

    def _over(self) -> bool:
        orphaned = os.getppid() != self._parent
        return self._ended.is_set() or orphaned or self.run.attempts()[-1] > self.attempt

    def _sources(self) -> list[Path]:
        folder = self.run.attempt_dir(self.attempt) / "nodes"
        return [*self.run.events.files(), self.run.metrics, *sorted(folder.glob("node-*.jsonl"))]

    def _pump(self, *, last: bool = False) -> None:
        """Hand new lines over to W&B; move the cursor past those that are old enough to be on disk."""
        moved = False
        for path in self._sources():
            name = path.relative_to(self.run.path).as_posix()
            lines, offset = read_new_lines(path, self._offsets.get(name, 0))
            for line in lines:
                if translated := self._translate(path, line):
                    self._wandb.log(translated)
                    moved = True
            self._offsets[name] = offset
        now = time.monotonic()
        if last or now >= self._next_summary:
            self._next_summary = now + SUMMARY_SECONDS
            values = self._view.wandb_summary()
            if (mark := _checksum(values)) != self._offsets.get(SUMMARY, 0):
                self._wandb.summary.update(values)
                self._offsets[SUMMARY], moved = mark, True
        if moved:
            self._handed_over.append((now, dict(self._offsets)))
        safe = None
        while self._handed_over and self._handed_over[0][0] < now - SAFE_SECONDS:
            safe = self._handed_over.popleft()[1]
        if safe is not None:
            self._save(safe)

    def _save(self, offsets: dict[str, int]) -> None:
        write_json(self._cursor_path, offsets)

    def _translate(self, path: Path, line: dict[str, Any]) -> dict[str, Any]:
        """A line of a run's files as W&B takes it: steps are metrics too, since W&B's own step cannot go back after a resume."""
        if path == self.run.metrics:
            if "step" not in line:  # half of a line that was cut
                return {}
            self._step = int(line["step"])
            values = {key: value for key, value in line.items() if key not in OWN_KEYS and value is not None}
            return {**values, "train/step": self._step, "system/time": line["time"], "attempt": line["attempt"]}
        if path.parent == self.run.events.folder:
            if not is_event(line):
                return {}
            return {f"events/{line['event']}": 1, "train/step": int(line.get("step", self._step)), "events/time": line["time"]}
        node = line.get("node", 0)
        values = {f"system/node-{node}/{k}": v for k, v in line.items() if k not in {"time", "node"}}
        return {**values, "system/time": line["time"]} if "time" in line else {}

    def _close(self) -> None:
        """Mirror the rest and close the W&B run with the attempt's exit code, or leave it to `ropewalk sync`."""
        # a server that does not answer would be tried for minutes; all is in W&B's local file by then
        watchdog = threading.Timer(CLOSE_SECONDS, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        self._pump(last=True)
        code = self._exit_code()
        if code in {EXIT_REQUEUE, 143}:
            self._wandb.mark_preempting()
        self._wandb.finish(exit_code=code)
        self._save(self._offsets)
        watchdog.cancel()

    def _give_up(self) -> None:
        log.warning("W&B does not answer; `ropewalk sync` uploads the rest later")
        self._save(self._offsets)
        os._exit(EXIT_DONE)

    def _exit_code(self) -> int:
        outcome = self.run.outcome(self.attempt)
        node = read_json(self.run.attempt_dir(self.attempt) / "nodes" / "node-0.json") or {}
        return outcome.exit_code if outcome else int(node.get("exit_code", EXIT_FAILED))


def _view(run: RunDir) -> Any:
    """The view of the run's job, a `jobs.runs.view.RunView`: it says the run's W&B group and what the summary holds."""
    return view_class(str(run.record["job"]))(run)


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True, default=str).encode()) if values else 0


def start_wandb(run: RunDir, attempt: int) -> Any:
    """Open the W&B run of this run: one for all attempts. Falls back to offline files, which `ropewalk sync` uploads."""
    # before wandb is imported: it reads the environment once
    os.environ["WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL"] = str(FLUSH_SECONDS)
    os.environ["WANDB_DIR"] = str(run.path)
    os.environ.setdefault("WANDB_SILENT", "true")
    run.wandb.mkdir(exist_ok=True)
    import wandb

    arguments = _wandb_arguments(run, attempt)
    try:
        started = wandb.init(**arguments)
    except wandb.errors.Error as error:
        log.warning("W&B: %s; writing offline files", error)
        started = wandb.init(**{**arguments, "mode": "offline"})
    started.define_metric("train/step")
    started.define_metric("system/time")
    for section in ("train", "validation", "evaluation", "events"):
        started.define_metric(f"{section}/*", step_metric="train/step")
    started.define_metric("system/*", step_metric="system/time")
    return started


def _wandb_arguments(run: RunDir, attempt: int) -> dict[str, Any]:
    """What `wandb.init` is told of a run: the same W&B run for all its attempts, with its configuration and its code."""
    import wandb

    record, details = run.record, run.attempt_details(attempt)
    config = record.get("config") or {}
    group = (config.get("wandb") or {}).get("group") or _view(run).wandb_group() or config.get("name") or record["job"]
    return {
        "mode": os.environ.get("WANDB_MODE") or ("online" if _server_answers() else "offline"),
        "id": run.id,
        "name": run.id,
        "project": (config.get("wandb") or {}).get("project") or os.environ.get("WANDB_PROJECT") or "ropewalk",
        "group": group,
        "job_type": record["job"],
        "tags": [str(record.get("cluster", "local")), *(config.get("wandb") or {}).get("tags", ())],
        "resume": "allow",
        "config": {
            **config,
            "resources": record.get("resources"),
            "git": record.get("code"),
            "attempt": attempt,
            "handle": details.get("handle"),
            "versions": record.get("versions"),
        },
        "settings": wandb.Settings(
            console="off", save_code=False, quiet=True, init_timeout=10, x_disable_stats=True, x_disable_meta=True
        ),
    }


def _server_answers() -> bool:
    """Whether there is a W&B key, and a server listens at its address."""
    parts = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    host = parts.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _has_login(host)):
        return False
    try:
        socket.create_connection((host, parts.port or (443 if parts.scheme == "https" else 80)), timeout=3).close()
    except OSError:
        return False
    return True


def _has_login(host: str) -> bool:
    """Whether `wandb login` has left a key in ~/.netrc."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def sync_run(run: RunDir) -> list[Path]:
    """Upload the W&B files of a run that are not uploaded yet, oldest first; returns them. Raises BackendError.

    What no sidecar lived to mirror is mirrored first, once the newest attempt is over.
    """
    _replay(run)
    waiting = [p for p in sorted(run.wandb.glob("offline-run-*")) if not list(p.glob("*.wandb.synced"))]
    if not waiting:
        return []
    if not _server_answers():
        raise BackendError(
            f"{run.id}: {len(waiting)} W&B files wait, but there is no W&B key or its server does not answer; "
            "run `wandb login` and `ropewalk sync` on a machine with a network"
        )
    for path in waiting:
        command = [sys.executable, "-m", "wandb", "sync", "--include-offline", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise BackendError(f"{path}: wandb sync failed: {' '.join(said)}")
    return waiting


def _replay(run: RunDir) -> None:
    attempts = run.attempts()
    if not attempts or run.outcome(attempts[-1]) is None:
        return
    known = dict(read_json(run.wandb / CURSOR) or {})
    written = run.metrics.stat().st_size if run.metrics.exists() else 0
    if known.get(run.metrics.name, 0) < written or known.get(SUMMARY, 0) != _checksum(_view(run).wandb_summary()):
        command = [sys.executable, "-m", "jobs.tracking.wandb_sync", str(run.path), "--attempt", str(attempts[-1]), "--replay"]
        subprocess.run(command, check=False)


if __name__ == "__main__":
    main()

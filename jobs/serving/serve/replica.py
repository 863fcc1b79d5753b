"""Ray Serve deployment that runs an engine on its node, publishes its address, and ends with it.

Requests do not pass through Ray Serve: the gateway talks to the engine directly. When Ray Serve removes the replica, it leaves
the routes first and lets the engine finish running requests.
"""

import json
import logging
import os
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.optional_writes import OptionalWrites
from ropewalk.jobs.inference.engines.engine import EngineOptions
from ropewalk.jobs.serving.serve.files import read_load

if TYPE_CHECKING:
    from ropewalk.jobs.inference.engines.process import EngineProcess

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
QUIET_SECONDS = 2.0  # a draining engine is stopped after this long without requests: routes take a moment to update
STALE_SECONDS = 5.0  # older counts of the gateway are ignored


class ReplicaState(StrEnum):
    """State in a replica's record."""

    STARTING = "starting"
    SERVING = "serving"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """Settings of a replica, which are sent to its node."""

    app: str
    version: str
    model: str  # the Hugging Face directory
    engine: str
    engine_command: tuple[str, ...] | None
    options: EngineOptions
    folder: str  # folder of the replica's record
    load: str  # file with the gateway's counts
    logs: str  # log folder of the attempt
    start_seconds: float
    drain_seconds: float
    own_address: bool  # listen on the node's address instead of loopback


class Replica:
    """Deployment class; Ray Serve creates one object per replica, each in its own process."""

    def __init__(self, spec: ReplicaSpec) -> None:
        from ray import serve

        context = serve.get_replica_context()
        self.spec, self.id = spec, f"{spec.app}.{context.replica_tag}"
        self._record = Path(spec.folder) / f"{self.id}.json"
        self._actor = context.replica_id.to_full_id_str()
        self._ending = False
        self._writes = OptionalWrites(str(self._record))
        self._written: dict[str, Any] = {}
        self._write_record(ReplicaState.STARTING)
        try:
            self._engine, engine_name = self._start()
        except Exception as error:
            self._write_record(ReplicaState.FAILED, cause=str(error))
            raise
        self._write_record(ReplicaState.SERVING, url=self._engine.url, engine=engine_name)
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()

    def _start(self) -> "tuple[EngineProcess, str]":
        from ropewalk.jobs.inference.engines.find import find_engine
        from ropewalk.jobs.inference.engines.process import EngineProcess
        from ropewalk.jobs.serving.serve.engine_command import CommandEngine

        spec, options, model = self.spec, self.spec.options, Path(self.spec.model)
        if spec.own_address:
            import ray

            options = replace(options, host=str(ray.util.get_node_ip_address()))
        engine = CommandEngine(spec.engine_command) if spec.engine_command else find_engine(spec.engine, model, options.gpus)
        started = EngineProcess.start(engine, model, options, log=Path(spec.logs) / f"engine-{self.id}.log")
        try:
            started.await_ready(spec.start_seconds)
        except BaseException:
            started.stop()
            raise
        return started, engine.name

    def _watch(self) -> None:
        """End this process when the engine ends, so that Ray Serve starts another replica; rewrite a record that failed."""
        while self._engine.alive():
            time.sleep(LOOK_SECONDS)
            if self._writes.failures and not self._ending:
                self._write()
        if not self._ending:
            log.error("the engine of replica %s has ended", self.id)
            with suppress(OSError):
                self._record.unlink(missing_ok=True)
            os._exit(1)

    def check_health(self) -> None:
        """Health check called by Ray Serve. Raises RuntimeError once the engine has ended."""
        if not self._ending and not self._engine.alive():
            raise RuntimeError(f"the engine of replica {self.id} has ended")

    def __call__(self) -> str:
        """Return the replica's name; no other requests come through Ray Serve."""
        return self.id

    def __del__(self) -> None:
        """Shutdown called by Ray Serve: leave the routes, let requests finish, stop the engine."""
        engine = getattr(self, "_engine", None)
        if engine is None or self._ending:
            return
        self._ending = True
        self._write_record(ReplicaState.DRAINING, **{key: self._written[key] for key in ("url", "engine")})
        wait_until_drained(
            lambda: count_running(engine.url, self.spec.options.token, Path(self.spec.load), self.id), self.spec.drain_seconds
        )
        engine.stop()
        self._record.unlink(missing_ok=True)

    def _write_record(self, state: ReplicaState, **more: Any) -> None:
        about = {"id": self.id, "actor": self._actor, "version": self.spec.version, "slots": self.spec.options.slots}
        self._written = {
            **about,
            "state": state.value,
            "node": os.uname().nodename,
            "pid": os.getpid(),
            "time": time.time(),
            **more,
        }
        self._write()

    def _write(self) -> None:
        with self._writes:
            write_json(self._record, self._written, durable=False)


class RunningRequests(NamedTuple):
    """Number of running and queued requests of an engine, and the time of the count by the counter's own clock."""

    requests: int
    counted_at: float


def wait_until_drained(count: Callable[[], RunningRequests | None], seconds: float) -> bool:
    """Wait until an engine has had no requests for QUIET_SECONDS, at most `seconds`; return True if it is known to be idle."""
    last_busy = last_update = time.monotonic()
    deadline, last = last_busy + seconds, None
    while (now := time.monotonic()) < deadline:
        running = count()
        if running is not None and (
            last is None or running.counted_at != last.counted_at
        ):  # only compared for equality: clocks of machines differ
            last_update, last = now, running
        if running is None or running.requests or now - last_update > STALE_SECONDS:
            last_busy = now
        elif last_update - last_busy >= QUIET_SECONDS:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def count_running(url: str, token: str | None, load: Path, replica: str) -> RunningRequests | None:
    """Return the running requests of an engine as reported by itself, else by the gateway; None if neither reports them."""
    request = urllib.request.Request(f"{url}/health", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            health = json.loads(answer.read())
        return RunningRequests(int(health["running"]) + int(health.get("waiting", 0)), time.time())
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(getattr(error, "reason", None), ConnectionRefusedError):  # the engine is gone, and with it its requests
            return RunningRequests(0, time.time())
    try:
        counts = read_load(load)
    except OSError:  # a shared file system may fail; the caller retries
        return None
    return (
        RunningRequests(int(counts["replicas"].get(replica, {}).get("running", 0)), counts["time"]) if "time" in counts else None
    )

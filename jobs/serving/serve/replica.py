"""A replica of Ray Serve: it starts an engine on its node, says where that answers, and lives as long as it does.

Requests never pass through it: the gateway talks to the engine. When Ray Serve takes the replica away, it first leaves the routes
and lets the engine finish what it has begun.
"""

import json
import logging
import os
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.serving.serve.files import read_load

if TYPE_CHECKING:
    from ropewalk.jobs.inference.engines.process import EngineProcess

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
QUIET_SECONDS = 2.0  # for so long no request must be under way before a draining engine is ended: routes take a moment
OLD_SECONDS = 5.0  # what the gateway said longer ago says nothing of now


class ReplicaState(StrEnum):
    """What a replica says of itself."""

    STARTING = "starting"
    SERVING = "serving"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """What a replica is told: plain values, since they travel to another node."""

    app: str
    version: str
    model: str  # the Hugging Face directory
    engine: str
    engine_command: tuple[str, ...] | None
    slots: int
    threads: int | None
    gpus: int  # of those of its node, which may have more
    context: int | None
    draft: str | None  # the Hugging Face directory of the draft
    draft_tokens: int
    folder: str  # where it writes its record
    load: str  # the file in which the gateway's counts are
    logs: str  # the attempt's logs
    start_seconds: float
    drain_seconds: float
    own_address: bool  # listen at the node's address; else at the loopback
    token: str | None = field(default=None, repr=False)  # that the engine asks for


class Replica:
    """The deployment's class: Ray Serve makes one object a replica, each in a process of its own."""

    def __init__(self, spec: ReplicaSpec) -> None:
        from ray import serve

        context = serve.get_replica_context()
        self.spec, self.id = spec, f"{spec.app}.{context.replica_tag}"
        self._record = Path(spec.folder) / f"{self.id}.json"
        self._actor = context.replica_id.to_full_id_str()
        self._ending = False
        self._told: dict[str, Any] = {}
        self._tell(ReplicaState.STARTING)
        try:
            self._engine, engine_name = self._start()
        except Exception as error:
            self._tell(ReplicaState.FAILED, cause=str(error))
            raise
        self._tell(ReplicaState.SERVING, url=self._engine.url, engine=engine_name)
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()

    def _start(self) -> "tuple[EngineProcess, str]":
        from ropewalk.jobs.inference.engines.engine import EngineOptions
        from ropewalk.jobs.inference.engines.process import EngineProcess
        from ropewalk.jobs.serving.serve.engine_command import engine_of

        spec = self.spec
        engine = engine_of(spec.engine, spec.engine_command, Path(spec.model), spec.gpus)
        options = EngineOptions(
            host=own_address() if spec.own_address else "127.0.0.1",
            slots=spec.slots,
            threads=spec.threads,
            gpus=spec.gpus,
            context=spec.context,
            name=spec.version,
            draft=Path(spec.draft) if spec.draft is not None else None,
            draft_tokens=spec.draft_tokens,
            token=spec.token,
        )
        started = EngineProcess.start(engine, Path(spec.model), options, log=Path(spec.logs) / f"engine-{self.id}.log")
        try:
            started.await_ready(spec.start_seconds)
        except BaseException:
            started.stop()
            raise
        return started, engine.name

    def _watch(self) -> None:
        """End this process when the engine has ended: Ray Serve then starts another replica."""
        while self._engine.alive():
            time.sleep(LOOK_SECONDS)
        if not self._ending:
            log.error("the engine of replica %s has ended", self.id)
            with suppress(OSError):
                self._record.unlink(missing_ok=True)
            os._exit(1)

    def check_health(self) -> None:
        """Asked by Ray Serve. Raises RuntimeError once the engine is gone."""
        if not self._ending and not self._engine.alive():
            raise RuntimeError(f"the engine of replica {self.id} has ended")

    def __call__(self) -> str:
        """The replica's name: nothing else is asked through Ray Serve."""
        return self.id

    def __del__(self) -> None:
        """Called by Ray Serve when the replica is to go: leave the routes, let requests end, end the engine."""
        engine = getattr(self, "_engine", None)
        if engine is None or self._ending:
            return
        self._ending = True
        self._tell(ReplicaState.DRAINING, **{key: self._told[key] for key in ("url", "engine")})
        drained(lambda: under_way(engine.url, self.spec.token, Path(self.spec.load), self.id), self.spec.drain_seconds)
        engine.stop()
        self._record.unlink(missing_ok=True)

    def _tell(self, state: ReplicaState, **more: Any) -> None:
        about = {"id": self.id, "actor": self._actor, "version": self.spec.version, "slots": self.spec.slots}
        self._told = {**about, "state": state.value, "node": os.uname().nodename, "pid": os.getpid(), "time": time.time(), **more}
        write_json(self._record, self._told, durable=False)


def own_address() -> str:
    """The address at which other nodes reach this one, as Ray knows it."""
    import ray

    return str(ray.util.get_node_ip_address())


class UnderWay(NamedTuple):
    """How many requests an engine has begun or queued, and when that was counted, by the clock of whoever counts."""

    requests: int
    counted: float


def drained(look: Callable[[], UnderWay | None], seconds: float) -> bool:
    """Wait until an engine has had no request for a moment, at most so many seconds; returns whether it is known to have none."""
    busy_at = came_at = time.monotonic()
    deadline, last = busy_at + seconds, None
    while (now := time.monotonic()) < deadline:
        found = look()
        if found is not None and (last is None or found.counted != last.counted):  # another machine's clock may be wrong
            came_at, last = now, found
        if found is None or found.requests or now - came_at > OLD_SECONDS:
            busy_at = now
        elif came_at - busy_at >= QUIET_SECONDS:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def under_way(url: str, token: str | None, load: Path, replica: str) -> UnderWay | None:
    """What is under way at an engine by its own word, else by the gateway's; None where neither says."""
    asked = urllib.request.Request(f"{url}/health", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            found = json.loads(answer.read())
        return UnderWay(int(found["running"]) + int(found.get("waiting", 0)), time.time())
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(getattr(error, "reason", None), ConnectionRefusedError):  # nobody is there who could have begun anything
            return UnderWay(0, time.time())
    try:
        told = read_load(load)
    except OSError:  # of a shared disk; it is asked again
        return None
    return UnderWay(int(told["replicas"].get(replica, {}).get("running", 0)), told["time"]) if "time" in told else None

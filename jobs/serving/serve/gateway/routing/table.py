"""Routing table: resolves API names by routes.json, and holds a queue per version."""

import asyncio
import logging
import os
import time
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.serving.serve.gateway.http.answers import RefusalError
from ropewalk.jobs.serving.serve.gateway.http.upstream import BrokenError, UnreachableError, Upstreams, Whole
from ropewalk.jobs.serving.serve.gateway.routing.queue import VersionQueue
from ropewalk.jobs.serving.serve.gateway.routing.replica import ReplicaState
from ropewalk.jobs.serving.serve.routes import Replica, Routes, read_routes

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # between checks of routes.json
_HEALTH_SECONDS = 2.0
_HEALTH_PAUSE_SECONDS = (0.02, 0.5)  # first and longest pause between health checks of an unhealthy replica


class Table:
    """Current routes and the queues of all versions. Follows the file while `follow` runs."""

    def __init__(self, path: Path, upstreams: Upstreams, *, per_slot: float, imbalance: float) -> None:
        self.routes: Routes | None = None
        self.queues: dict[str, VersionQueue] = {}
        self._path, self._upstreams = path, upstreams
        self._per_slot, self._imbalance = per_slot, imbalance
        self._file_id: tuple[int, int, int] | None = None
        self._health_checks: set[asyncio.Task[None]] = set()

    # --- names

    def version_for(self, model: str | None, conversation: bytes) -> tuple[str, str]:
        """Return (requested name, version that answers). Raises RefusalError for an unknown name."""
        routes = self._accepting()
        name = model or routes.default
        if name is None:
            raise RefusalError(
                400, "model is required; GET /v1/models lists the models", "missing_required_parameter", param="model"
            )
        if (alias := routes.aliases.get(name)) is not None:
            return name, alias.version_for(conversation)
        version = routes.versions.get(name)
        if version is None or version.draining:
            names = ", ".join(self.names()) or "none"
            raise RefusalError(404, f"there is no model {name!r}; available: {names}", "model_not_found", param="model")
        return name, name

    def names(self) -> list[str]:
        """Return the accepted values of `model`."""
        if self.routes is None:
            return []
        return [*self.routes.aliases, *(name for name, version in self.routes.versions.items() if not version.draining)]

    def queue(self, version: str) -> VersionQueue:
        """Return the queue of a version, also of one that is no longer in the file."""
        if version not in self.queues:
            self.queues[version] = VersionQueue(version, per_slot=self._per_slot, imbalance=self._imbalance)
        return self.queues[version]

    def _accepting(self) -> Routes:
        if self.routes is None:
            raise RefusalError(503, "no model is ready yet; retry in a moment", "not_ready", retry_after=2)
        if not self.routes.accepting:
            raise RefusalError(503, "this server is shutting down; retry", "leaving", retry_after=self.routes.retry_after)
        return self.routes

    # --- the file

    async def follow(self) -> None:
        """Read the file whenever it changes, forever."""
        while True:
            self.look()
            await asyncio.sleep(POLL_SECONDS)

    def look(self) -> None:
        """Read the file if it has changed. An invalid file is logged and ignored."""
        try:
            status = os.stat(self._path)
            file_id = (status.st_mtime_ns, status.st_ino, status.st_size)
            if file_id == self._file_id:
                return
            routes = read_routes(self._path)
        except FileNotFoundError:
            return
        except (OSError, ConfigError) as error:
            log.warning("keeping the previous routes: %s", error)
            self._file_id = None if isinstance(error, OSError) else file_id
            return
        self._file_id, self.routes = file_id, routes
        for name in routes.versions.keys() | self.queues.keys():
            self._update(name, routes.versions[name].replicas if name in routes.versions else ())

    def _update(self, version: str, replicas: tuple[Replica, ...]) -> None:
        queue = self.queue(version)
        listed = {replica.id: replica for replica in replicas}
        for replica_id, state in list(queue.replicas.items()):
            if listed.get(replica_id) != state.replica:
                state.listed = False
                self._upstreams.forget(state.replica.url)
                if not state.running or replica_id in listed:
                    del queue.replicas[replica_id]
        for name, replica in listed.items():
            if name not in queue.replicas:
                queue.replicas[name] = ReplicaState(replica)
            queue.replicas[name].listed = True
        queue.wake()
        if not queue.replicas and not queue.waiting and self.routes is not None and version not in self.routes.versions:
            del self.queues[version]

    # --- unhealthy replicas

    def mark_unhealthy(self, queue: VersionQueue, state: ReplicaState) -> None:
        """Send no requests to a replica until a health check passes."""
        self._upstreams.forget(state.replica.url)
        if state.unhealthy_since is None:
            state.mark_unhealthy()
            log.warning("replica %s of %s does not answer", state.replica.id, queue.version)
            task = asyncio.get_running_loop().create_task(self._await_health(queue, state))
            self._health_checks.add(task)
            task.add_done_callback(self._health_checks.discard)

    async def _await_health(self, queue: VersionQueue, state: ReplicaState) -> None:
        pause, longest = _HEALTH_PAUSE_SECONDS
        while state.listed:
            receiver = Whole()
            try:
                async with asyncio.timeout(_HEALTH_SECONDS):
                    await self._upstreams.ask(state.replica.url, "/health", b"", receiver, method="GET")
            except (UnreachableError, BrokenError, TimeoutError):
                pass
            if receiver.status == 200:
                seconds = time.monotonic() - (state.unhealthy_since or 0.0)
                log.info("replica %s of %s answers again after %.1f s", state.replica.id, queue.version, seconds)
                state.unhealthy_since = None
                queue.wake()
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

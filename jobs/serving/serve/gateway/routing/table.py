"""Routing table: resolves API names by routes.json, and holds a queue per version."""

import asyncio
import logging
import os
import time

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.serving.serve.gateway.errors import RefusalError
from ropewalk.jobs.serving.serve.gateway.routing.queue import VersionQueue
from ropewalk.jobs.serving.serve.gateway.routing.replica import ReplicaState
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateway.upstream import BrokenError, UnreachableError, Upstreams
from ropewalk.jobs.serving.serve.routes import Replica, Routes, read_routes

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # between checks of routes.json
_HEALTH_SECONDS = 2.0
_HEALTH_PAUSE_SECONDS = (0.02, 0.5)  # first and longest pause between health checks of an unhealthy replica


class Table:
    """Current routes and the queues of all versions. Follows the file while `follow` runs."""

    def __init__(self, settings: GatewaySettings, upstreams: Upstreams) -> None:
        self.routes: Routes | None = None
        self.queues: dict[str, VersionQueue] = {}
        self._settings, self._upstreams = settings, upstreams
        self._first = asyncio.Event()  # set once there are routes
        self._num_waiting = 0  # requests that wait for them
        self._file_id: tuple[int, int, int] | None = None
        self._health_checks: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Return True if a version has a replica that answers, and requests are accepted."""
        replicas = [state for queue in self.queues.values() for state in queue.replicas.values()]
        accepting = self.routes is not None and self.routes.accepting
        return accepting and any(state.listed and state.unhealthy_since is None for state in replicas)

    async def ready(self) -> None:
        """Wait for the first routes. Raises RefusalError if that takes too long or too many requests wait."""
        if self.routes is None and self._num_waiting < self._settings.queue_requests:
            self._num_waiting += 1
            try:
                async with asyncio.timeout(self._settings.queue_seconds):
                    await self._first.wait()
            except TimeoutError:
                pass
            finally:
                self._num_waiting -= 1
        if self.routes is None:
            raise RefusalError(503, "no model is ready yet; retry in a moment", "not_ready", retry_after=5)

    # --- names

    def version_for(self, model: str | None, conversation: bytes) -> tuple[str, str]:
        """Return (requested name, version that answers). Raises RefusalError for an unknown name."""
        routes = self.routes
        assert routes is not None  # callers have awaited `ready`
        if not routes.accepting:
            raise RefusalError(503, "this server is shutting down; retry", "leaving", retry_after=routes.retry_after)
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
            settings = self._settings
            self.queues[version] = VersionQueue(
                version,
                max_seconds=settings.queue_seconds,
                max_requests=settings.queue_requests,
                imbalance=settings.imbalance,
            )
        return self.queues[version]

    # --- the file

    async def follow(self) -> None:
        """Read the file whenever it changes, forever."""
        while True:
            self.look()
            await asyncio.sleep(POLL_SECONDS)

    def look(self) -> None:
        """Read the file if it has changed. An invalid file is logged and ignored."""
        try:
            status = os.stat(self._settings.routes)
            file_id = (status.st_mtime_ns, status.st_ino, status.st_size)
            if file_id == self._file_id:
                return
            routes = read_routes(self._settings.routes)
        except FileNotFoundError:
            return
        except (OSError, ConfigError) as error:
            log.warning("keeping the previous routes: %s", error)
            self._file_id = None if isinstance(error, OSError) else file_id
            return
        self._file_id, self.routes = file_id, routes
        self._first.set()
        for name in routes.versions.keys() | self.queues.keys():
            self._update(name, routes.versions[name].replicas if name in routes.versions else ())

    def _update(self, version: str, replicas: tuple[Replica, ...]) -> None:
        queue = self.queue(version)
        listed = {replica.id: replica for replica in replicas}
        for replica_id, state in list(queue.replicas.items()):
            if listed.get(replica_id) != state.replica:
                state.listed = False
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
        """Send no requests to a replica until a health check passes, and forget its cached prefixes."""
        if state.unhealthy_since is None:
            state.unhealthy_since = time.monotonic()
            state.prefixes.clear()
            log.warning("replica %s of %s does not answer", state.replica.id, queue.version)
            task = asyncio.get_running_loop().create_task(self._await_health(queue, state))
            self._health_checks.add(task)
            task.add_done_callback(self._health_checks.discard)

    async def _await_health(self, queue: VersionQueue, state: ReplicaState) -> None:
        pause, longest = _HEALTH_PAUSE_SECONDS
        while state.listed:
            status = 0
            try:
                async with (
                    asyncio.timeout(_HEALTH_SECONDS),
                    self._upstreams.ask(state.replica.url, "/health", method="GET") as reply,
                ):
                    status = reply.status
            except (UnreachableError, BrokenError, TimeoutError):
                pass
            if status == 200:
                seconds = time.monotonic() - (state.unhealthy_since or 0.0)
                log.info("replica %s of %s answers again after %.1f s", state.replica.id, queue.version, seconds)
                state.unhealthy_since = None
                queue.wake()
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

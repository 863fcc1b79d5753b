"""routes.json as it is now: what the API's names mean, and a queue for each version."""

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

LOOK_SECONDS = 0.1
_HEALTH_SECONDS = 2.0
_ASK_SECONDS = (0.02, 0.5)  # the first question for the health of a replica that is away, and at most so long between two


class Table:
    """Which version a request is for, and the queues. Follows the file while `follow` runs."""

    def __init__(self, path: Path, upstreams: Upstreams, *, per_slot: float, imbalance: float) -> None:
        self.routes: Routes | None = None
        self.queues: dict[str, VersionQueue] = {}
        self._path, self._upstreams = path, upstreams
        self._per_slot, self._imbalance = per_slot, imbalance
        self._seen: tuple[int, int, int] | None = None
        self._asking: set[asyncio.Task[None]] = set()

    # --- names

    def version_for(self, model: str | None, conversation: bytes) -> tuple[str, str]:
        """(The name that was meant, the version that answers). Raises RefusalError for one that there is not."""
        routes = self._accepting()
        name = model or routes.default
        if name is None:
            raise RefusalError(400, "model: name one; GET /v1/models lists them", "missing_required_parameter", param="model")
        if (alias := routes.aliases.get(name)) is not None:
            return name, alias.version_for(conversation)
        version = routes.versions.get(name)
        if version is None or version.draining:
            told = ", ".join(self.names()) or "none"
            raise RefusalError(404, f"there is no model {name!r} here; there is {told}", "model_not_found", param="model")
        return name, name

    def names(self) -> list[str]:
        """What `model` may be."""
        if self.routes is None:
            return []
        return [*self.routes.aliases, *(name for name, version in self.routes.versions.items() if not version.draining)]

    def queue(self, version: str) -> VersionQueue:
        """The queue of a version, also of one that the file does not name any more."""
        if version not in self.queues:
            self.queues[version] = VersionQueue(version, per_slot=self._per_slot, imbalance=self._imbalance)
        return self.queues[version]

    def _accepting(self) -> Routes:
        if self.routes is None:
            raise RefusalError(503, "no model is served yet; come back in a moment", "not_ready", retry_after=2)
        if not self.routes.accepting:
            raise RefusalError(503, "this server is leaving; try again", "leaving", retry_after=self.routes.retry_after)
        return self.routes

    # --- the file

    async def follow(self) -> None:
        """Read the file whenever it changes, for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Read the file if it has changed. One that is not valid changes nothing, and is logged."""
        try:
            found = os.stat(self._path)
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen == self._seen:
                return
            routes = read_routes(self._path)
        except FileNotFoundError:
            return
        except (OSError, ConfigError) as error:
            log.warning("routes stay as they are: %s", error)
            self._seen = None if isinstance(error, OSError) else seen
            return
        self._seen, self.routes = seen, routes
        for name in routes.versions.keys() | self.queues.keys():
            self._update(name, routes.versions[name].replicas if name in routes.versions else ())

    def _update(self, version: str, replicas: tuple[Replica, ...]) -> None:
        queue = self.queue(version)
        listed = {replica.id: replica for replica in replicas}
        for known, state in list(queue.replicas.items()):
            if listed.get(known) != state.replica:
                state.listed = False
                self._upstreams.forget(state.replica.url)
                if not state.running or known in listed:
                    del queue.replicas[known]
        for name, replica in listed.items():
            if name not in queue.replicas:
                queue.replicas[name] = ReplicaState(replica)
            queue.replicas[name].listed = True
        queue.wake()
        if not queue.replicas and not queue.waiting and self.routes is not None and version not in self.routes.versions:
            del self.queues[version]

    # --- replicas that do not answer

    def lose(self, queue: VersionQueue, state: ReplicaState) -> None:
        """A replica did not answer: nothing goes there until its health says otherwise."""
        self._upstreams.forget(state.replica.url)
        if state.away_since is None:
            state.lose()
            log.warning("replica %s of %s is away", state.replica.id, queue.version)
            task = asyncio.get_running_loop().create_task(self._await_health(queue, state))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _await_health(self, queue: VersionQueue, state: ReplicaState) -> None:
        pause, longest = _ASK_SECONDS
        while state.listed:
            receiver = Whole()
            try:
                async with asyncio.timeout(_HEALTH_SECONDS):
                    await self._upstreams.ask(state.replica.url, "/health", b"", receiver, method="GET")
            except (UnreachableError, BrokenError, TimeoutError):
                pass
            if receiver.status == 200:
                away = time.monotonic() - (state.away_since or 0.0)
                log.info("replica %s of %s is back after %.1f s", state.replica.id, queue.version, away)
                state.away_since = None
                queue.wake()
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

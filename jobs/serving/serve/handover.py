"""Handover of a serving run that must stop: a successor is submitted, and this run serves until the successor answers."""

import logging
import time

from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import settle
from ropewalk.jobs.runs.submit.children import newest_run, start_child
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.files import ServingFiles

log = logging.getLogger(__name__)

# keys of this run's record that its successor's record has, too
ORIGIN = frozenset({"job", "entry", "engine", "preload", "sidecars", "config", "resources"})
ORIGIN |= {"cluster", "created", "versions", "command", "code", "directory", "project", "packages", "secrets"}
CHECK_SECONDS = 3.0  # between queries of the successor's state


class Handover:
    """Submits the successor in time and checks whether it serves."""

    def __init__(self, context: JobContext, config: ServeConfig) -> None:
        self.context, self.config = context, config
        self.files = ServingFiles(context.run)
        self._started_at, self._checked_at = time.monotonic(), 0.0
        self.failed = False  # in this attempt, which then serves until it must stop
        limit = context.run.resources(context.attempt).time_limit_minutes
        self._limit = limit * 60 - config.resources.grace_seconds if limit is not None else None

    def due(self) -> bool:
        """Return True if the time limit is so close that a successor must start now."""
        if not self.config.handover or self._limit is None or self.failed:
            return False
        return time.monotonic() - self._started_at > self._limit - self.config.handover_minutes * 60

    def start(self) -> RunDir | None:
        """Submit the successor; None if the run was cancelled, has no handover, or the submission failed."""
        run = self.context.run
        if not self.config.handover or run.cancel_requested or self.failed:
            return None
        try:
            successor = self._earlier() or self._create()
            start_child(backend_of(run), successor, ())
            if (read_json(self.files.successor) or {}).get("run") != successor.id:
                write_json(self.files.successor, {"run": successor.id, "time": time.time()})
                run.event("handover_started", successor=successor.id)
        except (RopewalkError, OSError) as error:
            self._fail(f"no successor could be submitted: {error}")
            return None
        return successor

    def _create(self) -> RunDir:
        run = self.context.run
        record = {key: value for key, value in run.record.items() if key in ORIGIN}
        return RunDir.create(self.config.name or "serve", {**record, "continues": run.id}, run.path.parent)

    def _earlier(self) -> RunDir | None:
        """Return the successor that an earlier attempt created, unless it failed."""
        run = self.context.run
        successor = newest_run(run.path.parent, self.config.name or "serve", continues=run.id)
        outcome = successor.last_outcome() if successor is not None else None
        failed = outcome is not None and outcome.state.final and outcome.state is not RunState.SUCCEEDED
        return None if failed else successor

    def _fail(self, why: str) -> None:
        self.failed = True
        log.error("handover failed: %s", why)
        self.context.run.event("handover_failed", error=why)

    def is_serving(self, successor: RunDir) -> bool:
        """Return True if the successor serves; sets `failed` if it never will."""
        state = read_json(ServingFiles(successor).state) or {}
        address = read_json(ServingFiles(successor).address) or {}
        if state.get("stable") and address.get("address") and not address.get("closed"):
            return True
        if time.monotonic() - self._checked_at < CHECK_SECONDS:
            return False
        self._checked_at = time.monotonic()
        status = settle(successor)
        if status.state.final and status.state is not RunState.SUCCEEDED:
            self._fail(f"{successor.id}: {status.reason}")
        return False

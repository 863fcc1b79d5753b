"""A serving run that must leave hands over: a second run of the same keys starts, and this one serves until that answers."""

import logging
import time

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import settle
from ropewalk.jobs.runs.submit.submit import start
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.files import ServingFiles

log = logging.getLogger(__name__)

ORIGIN = (
    "job",
    "entry",
    "engine",
    "preload",
    "sidecars",
    "config",
    "cluster",
    "created",
    "versions",
    "command",
    "code",
    "directory",
    "project",
)
ASK_SECONDS = 3.0


class Handover:
    """Decides when to hand over, submits the successor, and sees whether it answers."""

    def __init__(self, context: JobContext, config: ServeConfig) -> None:
        self.context, self.config = context, config
        self.files = ServingFiles(context.run)
        self._began, self._asked = time.monotonic(), 0.0
        self.failed = False  # in this attempt: it serves on until it must leave, and its next attempt takes over
        limit = context.run.resources(context.attempt).time_limit_minutes
        self._limit = limit * 60 - config.resources.grace_seconds if limit is not None else None

    def due(self) -> bool:
        """Whether the time limit is near enough that a successor must start now."""
        if not self.config.handover or self._limit is None or self.failed:
            return False
        return time.monotonic() - self._began > self._limit - self.config.handover_minutes * 60

    def begin(self) -> RunDir | None:
        """Submit the successor, unless the run was cancelled or hands nothing over; None where there is none."""
        run = self.context.run
        if not self.config.handover or run.cancel_requested or self.failed:
            return None
        if (earlier := self._earlier()) is not None:
            return earlier
        record = {key: run.record[key] for key in ORIGIN if key in run.record}
        successor = RunDir.create(self.config.name or "serve", {**record, "continues": run.id}, run.path.parent)
        try:
            start(load_backend(str(run.record["cluster"])), [successor], self.config.resources)
        except (RopewalkError, OSError) as error:
            self._fail(f"no successor could be submitted: {error}")
            return None
        write_json(self.files.successor, {"run": successor.id, "time": time.time()})
        run.event("handover_begun", successor=successor.id)
        return successor

    def _earlier(self) -> RunDir | None:
        """The successor that an earlier attempt has submitted, unless that one has failed."""
        found = read_json(self.files.successor)
        successor = RunDir(self.context.run.path.parent / str(found["run"])) if found else None
        outcome = successor.last_outcome() if successor is not None else None
        lost = outcome is not None and outcome.state.final and outcome.state is not RunState.SUCCEEDED
        return None if lost else successor

    def _fail(self, why: str) -> None:
        self.failed = True
        log.error("nothing is handed over: %s", why)
        self.context.run.event("handover_failed", error=why)

    def answers(self, successor: RunDir) -> bool:
        """Whether the successor serves; `failed` says when it never will."""
        state = read_json(ServingFiles(successor).state) or {}
        address = read_json(ServingFiles(successor).address) or {}
        if state.get("stable") and address.get("address") and not address.get("closed"):
            return True
        if time.monotonic() - self._asked < ASK_SECONDS:
            return False
        self._asked = time.monotonic()
        found = settle(successor)
        if found.state.final and found.state is not RunState.SUCCEEDED:
            self._fail(f"{successor.id}: {found.reason}")
        return False

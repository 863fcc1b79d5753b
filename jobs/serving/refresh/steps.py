"""Runs of a round's steps: created once, started once, and followed to their end across restarts of the driver."""

import time
from collections.abc import Callable
from contextlib import suppress

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.errors import AlreadyRunningError, RopewalkError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.show.status import GONE, final_outcome, settle
from ropewalk.jobs.runs.submit.children import create_child, find_child
from ropewalk.jobs.serving.refresh.plan import Step

LOOK_SECONDS = 0.5
SETTLE_SECONDS = 10.0  # between checks for runs whose processes died without recording an outcome
DONE = frozenset({RunState.SUCCEEDED, RunState.REFUSED})

Ask = Callable[[str, RunDir], None]  # (submit | resume | cancel, run)


class StepFailedError(RopewalkError):
    """A step's run has failed permanently."""


class Steps:
    """Creates and follows the runs of steps."""

    def __init__(self, context: JobContext, ask: Ask, look_seconds: float = LOOK_SECONDS) -> None:
        self.context, self.ask, self.look_seconds = context, ask, look_seconds
        self.cluster = str(context.run.record["cluster"])
        self._started: set[str] = set()

    def finish(self, number: int, step: Step) -> RunDir:
        """Run a step to its end and return its run: it succeeded, or its gate refused.

        Raises StepFailedError, and StopRequested if this run must stop; the step's run then continues.
        """
        run = self._run(number, step)
        checked_at = 0.0
        while (outcome := final_outcome(run)) is None or not self._done(run, outcome):
            if run.id not in self._started or time.monotonic() - checked_at > SETTLE_SECONDS:
                checked_at = time.monotonic()
                self._start(run)
            self.wait()
        return run

    def wait(self) -> None:
        """Sleep for the polling interval. Raises StopRequested if this run must stop."""
        if self.context.stop_requested():
            raise StopRequested("running steps continue; the next attempt follows them")
        time.sleep(self.look_seconds)

    def _done(self, run: RunDir, outcome: Outcome) -> bool:
        """Return True if a finished run did its work; False if it failed under an earlier driver and is to be retried once."""
        if outcome.state in DONE:
            return True
        if run.id in self._started:
            raise StepFailedError(
                f"{run.id} ended as {outcome.state}: {outcome.cause}; see `ropewalk why {run.id}`; "
                f"`ropewalk resume {self.context.run.id}` retries it"
            )
        return False

    def _run(self, number: int, step: Step) -> RunDir:
        parent, label = self.context.run, f"{number}-{step.name}"
        run = find_child(parent, label, str(step.config.name))
        if run is None:
            self.context.fence.check()
            backend = load_backend(self.cluster)
            run = create_child(parent, label, step.job, step.config, cluster=self.cluster, backend=backend, outlives_parent=False)
        return run

    def _start(self, run: RunDir) -> None:
        """Start a run that was never started, or resume one that is neither running nor done."""
        first = run.id not in self._started
        if not run.attempts():
            verb = "submit"
        else:
            state = settle(run)
            running = not state.state.final and state.state is not RunState.UNKNOWN and state.word not in GONE
            if running or state.state in DONE or (state.state.final and not first):
                self._started.add(run.id)
                return
            verb = "resume"
        with suppress(AlreadyRunningError):  # the request of a killed driver was carried out meanwhile
            self.ask(verb, run)
        self._started.add(run.id)

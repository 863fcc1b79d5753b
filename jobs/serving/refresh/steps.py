"""The runs of a round's steps: made once, started once, followed to their end, whoever was killed meanwhile."""

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
SETTLE_SECONDS = 10.0  # a run whose processes are gone without a word is asked about so often
DONE = frozenset({RunState.SUCCEEDED, RunState.REFUSED})

Ask = Callable[[str, RunDir], None]  # (submit | resume | cancel, run)


class StepFailedError(RopewalkError):
    """A step's run has failed for good."""


class Steps:
    """Makes and follows the runs of steps."""

    def __init__(self, context: JobContext, ask: Ask, look_seconds: float = LOOK_SECONDS) -> None:
        self.context, self.ask, self.look_seconds = context, ask, look_seconds
        self.cluster = str(context.run.record["cluster"])
        self._begun: set[str] = set()

    def finish(self, number: int, step: Step) -> RunDir:
        """The run of a step once it is over: it has succeeded, or its gate refused.

        Raises StepFailedError, and StopRequested where this run must stop; the step's run goes on then.
        """
        run = self._run(number, step)
        looked = 0.0
        while (outcome := final_outcome(run)) is None or not self._done(run, outcome):
            if run.id not in self._begun or time.monotonic() - looked > SETTLE_SECONDS:
                looked = time.monotonic()
                self._begin(run)
            self.wait()
        return run

    def wait(self) -> None:
        """Wait a moment. Raises StopRequested where this run must stop."""
        if self.context.stop_requested():
            raise StopRequested("the steps that have begun run on; the next attempt follows them again")
        time.sleep(self.look_seconds)

    def _done(self, run: RunDir, outcome: Outcome) -> bool:
        """Whether a run that is over has done its work; False: an earlier driver's attempt failed, and it is tried once more."""
        if outcome.state in DONE:
            return True
        if run.id in self._begun:
            raise StepFailedError(
                f"{run.id} ended as {outcome.state}: {outcome.cause}; `ropewalk why {run.id}` says more, and "
                f"`ropewalk resume {self.context.run.id}` goes on with it"
            )
        return False

    def _run(self, number: int, step: Step) -> RunDir:
        parent, label = self.context.run, f"{number}-{step.name}"
        found = find_child(parent, label, str(step.config.name))
        if found is None:
            self.context.fence.check()
            backend = load_backend(self.cluster)
            found = create_child(
                parent, label, step.job, step.config, cluster=self.cluster, backend=backend, outlives_parent=False
            )
        return found

    def _begin(self, run: RunDir) -> None:
        """Start a run that was never started, or resume one that is neither under way nor done."""
        first = run.id not in self._begun
        if not run.attempts():
            verb = "submit"
        else:
            state = settle(run)
            under_way = not state.state.final and state.state is not RunState.UNKNOWN and state.word not in GONE
            if under_way or state.state in DONE or (state.state.final and not first):
                self._begun.add(run.id)
                return
            verb = "resume"
        with suppress(AlreadyRunningError):  # an earlier driver's request was carried out after it was killed
            self.ask(verb, run)
        self._begun.add(run.id)

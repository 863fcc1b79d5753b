"""Trials inside the allocation of their sweep: their supervisor and their backend."""

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ropewalk.cluster.backends.base import Backend, BackendState
from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import BY_SUBMISSION, RunState
from ropewalk.cluster.supervise.supervisor import Supervisor, close_unfinished_attempt

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

log = logging.getLogger(__name__)

NAME = "allocation"


class AllocationBackend(Backend):
    """Backend of runs inside a sweep's allocation; they live as long as the sweep and are resumed with it."""

    def render(self, run: RunDir, resources: Resources) -> str:
        raise BackendError(f"{NAME}: its runs are trials of a sweep with allocation=true; submit the sweep")

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        sweep = run.record.get("parent", "a sweep with allocation=true")
        raise BackendError(f"{run.id} runs on the nodes of its sweep and is resumed with it: `ropewalk resume {sweep}`")

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Return the states of the runs' sweeps, or the outcomes of ended runs."""
        return {run.id: self._state(run) for run in runs}

    def _state(self, run: RunDir) -> BackendState:
        outcome, sweep = run.last_outcome(), run.parent
        if outcome is not None and outcome.state.final:
            return BackendState(state=outcome.state, word="ended")
        if sweep is None:
            return BackendState(state=RunState.UNKNOWN, word="lost", reason="its record names no sweep")
        sweep_state = backend_of(sweep).states([sweep])[sweep.id]
        if sweep_state.state is RunState.RUNNING:
            return BackendState(state=RunState.RUNNING, word="allocated", handle=sweep_state.handle)
        reason = f"its sweep is not running; `ropewalk resume {sweep.id}` resumes both"
        return BackendState(state=sweep_state.state, word=sweep_state.word, reason=reason)

    def cancel(self, run: RunDir) -> None:
        """Write the cancel request into the run, where its supervisor reads it."""
        run.request_cancel()


class TrialSupervisor(threading.Thread):
    """Supervises a trial's run on this actor's placement group until the run ends or loses its nodes."""

    def __init__(self, run: RunDir, stop_reason: Callable[[], str]) -> None:
        super().__init__(name=f"supervisor-{run.id}", daemon=True)
        self.run_dir, self.stop_reason = run, stop_reason
        close_unfinished_attempt(run, "the nodes of its sweep were lost")
        run.withdraw_cancel()
        self.resources = run.resources()
        resources = self.resources.model_dump(mode="json")
        self.number = run.begin_attempt(resources=resources, backend=NAME, opened_by=BY_SUBMISSION)

    def run(self) -> None:
        import ray

        from ropewalk.jobs.orchestration.sweep.trials.ray_allocation import RayClusterAllocation

        nodes: RayClusterAllocation | None = None
        try:
            nodes = RayClusterAllocation(self.run_dir, self.resources, ray.util.get_current_placement_group(), self.stop_reason)
            Supervisor(self.run_dir, nodes, sys.executable).supervise(self.number)
        except Exception:  # a thread cannot raise to a caller; the trial notices that its supervisor ended
            log.exception("%s: its supervisor failed", self.run_dir.id)
        finally:
            if nodes is not None:
                nodes.close()


def placement(resources: Resources) -> "PlacementGroupFactory":
    """Return the placement group of a trial: one bundle per node, on different nodes; the actor itself takes no resources."""
    from ray.tune import PlacementGroupFactory

    from ropewalk.jobs.orchestration.sweep.trials.ray_allocation import cpus_of

    bundle: dict[str, float] = {"CPU": float(cpus_of(resources))}
    if resources.gpus:
        bundle["GPU"] = float(resources.gpus)
    nodes = resources.nodes.most
    return PlacementGroupFactory([{}, *[bundle] * nodes], strategy="STRICT_SPREAD" if nodes > 1 else "PACK")

"""Trials inside the allocation of their sweep: what supervises them, and the backend by which others see them."""

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ropewalk.cluster.backends.base import Backend, BackendState
from ropewalk.cluster.backends.profiles import load_backend
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
    """The backend of such runs: one lives as long as its sweep does, and is resumed with it."""

    def render(self, run: RunDir, resources: Resources) -> str:
        """Raise BackendError: no scheduler is handed anything."""
        raise BackendError(f"{NAME}: runs of it are trials of a sweep with allocation=true; submit that")

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Raise BackendError: only the sweep starts them."""
        whose = run.record.get("parent", "a sweep with allocation=true")
        raise BackendError(f"{run.id} runs on the nodes of its sweep and is resumed with it: `ropewalk resume {whose}`")

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """The states of their sweeps, for runs that have no outcome."""
        return {run.id: self._state(run) for run in runs}

    def _state(self, run: RunDir) -> BackendState:
        outcome, sweep = run.last_outcome(), run.parent
        if outcome is not None and outcome.state.final:
            return BackendState(state=outcome.state, word="ended")
        if sweep is None:
            return BackendState(state=RunState.UNKNOWN, word="lost", reason="no sweep is named in its record")
        theirs = load_backend(str(sweep.record["cluster"])).states([sweep])[sweep.id]
        if theirs.state is RunState.RUNNING:
            return BackendState(state=RunState.RUNNING, word="allocated", handle=theirs.handle)
        reason = f"its sweep does not run now; `ropewalk resume {sweep.id}` resumes both"
        return BackendState(state=theirs.state, word=theirs.word, reason=reason)

    def cancel(self, run: RunDir) -> None:
        """Leave the request in the run, where its supervisor finds it."""
        run.request_cancel()


class TrialSupervisor(threading.Thread):
    """Supervises a trial's run on the placement group of this actor, until the run is over or has lost its nodes."""

    def __init__(self, run: RunDir, stop_reason: Callable[[], str]) -> None:
        super().__init__(name=f"supervisor-{run.id}", daemon=True)
        self.run_dir, self.stop_reason = run, stop_reason
        close_unfinished_attempt(run, "the nodes of its sweep were lost")
        run.withdraw_cancel()
        self.resources = run.resources()
        plain = self.resources.model_dump(mode="json")
        self.number = run.begin_attempt(resources=plain, backend=NAME, opened_by=BY_SUBMISSION)

    def run(self) -> None:
        """Supervise attempt after attempt."""
        import ray

        from ropewalk.jobs.orchestration.sweep.ray_allocation import RayClusterAllocation

        nodes: RayClusterAllocation | None = None
        try:
            nodes = RayClusterAllocation(self.run_dir, self.resources, ray.util.get_current_placement_group(), self.stop_reason)
            Supervisor(self.run_dir, nodes, sys.executable).supervise(self.number)
        except Exception:  # a thread has nobody to raise to; the trial sees that its supervisor is gone
            log.exception("%s is not supervised any more", self.run_dir.id)
        finally:
            if nodes is not None:
                nodes.close()


def placement(resources: Resources) -> "PlacementGroupFactory":
    """The placement group of one trial: a bundle a node, on different nodes; the actor itself takes nothing."""
    from ray.tune import PlacementGroupFactory

    from ropewalk.jobs.orchestration.sweep.ray_allocation import cpus_of

    bundle: dict[str, float] = {"CPU": float(cpus_of(resources))}
    if resources.gpus:
        bundle["GPU"] = float(resources.gpus)
    nodes = resources.nodes.most
    return PlacementGroupFactory([{}, *[bundle] * nodes], strategy="STRICT_SPREAD" if nodes > 1 else "PACK")

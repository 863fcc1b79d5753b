"""Trials inside the allocation of their sweep: who carries them, and what others are told of them."""

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.backends.base import Backend, BackendState
from cluster.backends.profiles import load_backend
from cluster.config import Resources
from cluster.errors import BackendError
from cluster.run.directory import RunDir
from cluster.spec import RunState
from cluster.supervise.supervisor import BY_SUBMISSION, Supervisor, close_unfinished_attempt

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

log = logging.getLogger(__name__)

NAME = "allocation"


class AllocationBackend(Backend):
    """Seen from outside: such a run lives as long as its sweep does, and goes on with it."""

    def render(self, run: RunDir, resources: Resources) -> str:
        """There is nothing that is handed over."""
        raise BackendError(f"{NAME}: runs of it are trials of a sweep with allocation=true; submit that")

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        """Only the sweep starts them."""
        whose = run.record.get("parent", "a sweep with allocation=true")
        raise BackendError(f"{run.id} lives on the nodes of its sweep and goes on with it: `ropewalk resume {whose}`")

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        """Those of their sweeps, where no outcome says more."""
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
        reason = f"its sweep does not run now; `ropewalk resume {sweep.id}` goes on with both"
        return BackendState(state=theirs.state, word=theirs.word, reason=reason)

    def cancel(self, run: RunDir) -> None:
        """Whoever carries it finds the request."""
        run.request_cancel()


class Carrier(threading.Thread):
    """Carries a trial's run on the placement group of this actor, until the run is over or has lost its nodes."""

    def __init__(self, run: RunDir, order: Callable[[], str]) -> None:
        super().__init__(name=f"carrier-{run.id}", daemon=True)
        self.run_dir, self.order = run, order
        close_unfinished_attempt(run, "the nodes of its sweep were lost")
        run.withdraw_cancel()
        self.resources = Resources.model_validate(run.record["resources"])
        plain = self.resources.model_dump(mode="json")
        self.number = run.begin_attempt(resources=plain, backend=NAME, opened_by=BY_SUBMISSION)

    def run(self) -> None:
        """Attempt after attempt."""
        import ray

        from jobs.sweep.ray_allocation import RayClusterAllocation

        lane: Any = None
        try:
            lane = RayClusterAllocation(self.run_dir, self.resources, ray.util.get_current_placement_group(), self.order)
            Supervisor(self.run_dir, lane, sys.executable).supervise(self.number)
        except Exception:  # a thread has nobody to raise to; the trial sees that nobody carries its run
            log.exception("%s is not carried any more", self.run_dir.id)
        finally:
            if lane is not None:
                lane.close()


def placement(resources: Resources) -> "PlacementGroupFactory":
    """What one trial takes: a bundle a node, on different nodes; the actor itself takes nothing."""
    from ray.tune import PlacementGroupFactory

    from jobs.sweep.ray_allocation import cpus_of

    bundle: dict[str, float] = {"CPU": float(cpus_of(resources))}
    if resources.gpus:
        bundle["GPU"] = float(resources.gpus)
    nodes = resources.nodes.most
    return PlacementGroupFactory([{}, *[bundle] * nodes], strategy="STRICT_SPREAD" if nodes > 1 else "PACK")

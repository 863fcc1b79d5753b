"""A cluster that ends every run as its profile says, at once; what it was asked is in a file."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ropewalk.cluster.backends.base import Backend, BackendState, Check, GpuSupply, Profile, Waiting
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.attempts import begin_attempts
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, write_json
from ropewalk.cluster.spec import Outcome, RunState


class FakeBackend(Backend):
    """Options: log (a file), outcome (a state, or none: it goes on), cause, results, refuse (a message), ships_code, mounts,
    saves (a run that is cancelled ends at once).
    """

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self.options = dict(profile.options)
        self.ships_code = bool(self.options.get("ships_code"))

    @property
    def mounts(self) -> Mapping[str, str]:
        return dict(self.options.get("mounts", {}))

    def _note(self, verb: str, **fields: object) -> None:
        append_line(Path(self.options["log"]), {"verb": verb, **fields})

    def render(self, run: RunDir, resources: Resources) -> str:
        return f"#!/bin/bash\n# {run.id} on {resources.nodes} nodes\npython -m ropewalk.cluster.agent runs/{run.id}\n"

    def submit(self, run: RunDir, resources: Resources, after: Sequence[str] = ()) -> str:
        if self.options.get("refuse"):
            raise BackendError(str(self.options["refuse"]))
        self._note("submit", run=run.id, nodes=str(resources.nodes), after=list(after))
        attempt = run.begin_attempt(handle="fake:1", resources=resources.model_dump(mode="json"))
        if self.options.get("results"):
            write_json(run.attempt_dir(attempt) / "result.json", self.options["results"])
        if self.options.get("outcome"):
            state = RunState(self.options["outcome"])
            cause = str(self.options.get("cause", "as the profile says"))
            code = 0 if state is RunState.SUCCEEDED else 1
            run.write_outcome(
                attempt, Outcome(state=state, exit_code=code, cause=cause, started=time.time() - 5, ended=time.time())
            )
        return "fake:1"

    def submit_many(
        self, runs: Sequence[RunDir], resources: Resources, after: Sequence[str] = (), at_once: int | None = None
    ) -> list[str]:
        if self.options.get("refuse"):
            raise BackendError(str(self.options["refuse"]))
        self._note("submit_many", runs=[run.id for run in runs], after=list(after), at_once=at_once)
        plain = resources.model_dump(mode="json")
        handles = [f"fake:1_{position}" for position in range(len(runs))]
        begin_attempts([run.path for run in runs], [{"handle": handle, "resources": plain} for handle in handles])
        return handles

    def gpu_supply(self) -> GpuSupply:
        """Return `gpus` of its profile, which are not those of this machine; `unknown`: nobody tells."""
        if self.options.get("gpus") == "unknown":
            raise BackendError("nodes is forbidden")
        return GpuSupply(per_node=int(self.options.get("gpus", 0)), owner="nodes of partition gpu have")

    def states(self, runs: Sequence[RunDir]) -> Mapping[str, BackendState]:
        self._note("states", runs=[run.id for run in runs])
        return {run.id: BackendState(state=RunState.RUNNING, word="R", reason="") for run in runs}

    def cancel(self, run: RunDir) -> None:
        self._note("cancel", run=run.id)
        run.request_cancel()
        if self.options.get("saves"):
            saved = Outcome(state=RunState.CANCELLED, exit_code=85, cause="cancelled after saving", ended=time.time())
            run.write_outcome(run.attempts()[-1], saved)

    def explain_waiting(self, run: RunDir) -> Waiting:
        return Waiting(lines=["its priority is 5"], remedy="with resources.nodes=1 it would start at once")

    def hold(self, run: RunDir) -> None:
        self._note("hold", run=run.id)

    def release(self, run: RunDir) -> None:
        self._note("release", run=run.id)

    def lower_priority(self, run: RunDir, amount: int) -> None:
        if amount > 100:
            raise BackendError("scontrol: access denied")
        self._note("priority", run=run.id, amount=amount)

    def checks(self) -> list[Check]:
        return [Check(name="fake", ok=bool(self.options.get("well", True)), detail="made up")]

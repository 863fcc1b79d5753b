"""Toy runs on a real Slurm cluster, and a look at what became of them."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.base import BackendState, Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import Outcome
from ropewalk.slurm.backend import SlurmBackend
from ropewalk.slurm.job_lookup import job_id
from tests.patience import Patience, until

ROOT = Path(__file__).resolve().parents[2]


class SlurmToy:
    """A run of one of tests/fakes/toy.py's entries on the cluster that SLURM_CONF names."""

    def __init__(
        self,
        root: Path,
        entry: str = "count",
        engine: str = "ranks",
        *,
        profile: dict[str, Any] | None = None,
        resources: dict[str, Any] | None = None,
        after: tuple[str, ...] = (),
        submit: bool = True,
        **config: Any,
    ) -> None:
        self.backend = SlurmBackend(Profile(name="lab", backend="slurm", options=profile or {}))
        self.resources = Resources.model_validate({"grace_seconds": 20, **(resources or {})})
        record = {
            "job": "toy",
            "entry": entry if ":" in entry else f"tests.fakes.toy:{entry}",
            "engine": engine,
            "preload": ["torch"] if engine == "ranks" else [],
            "sidecars": [],
            "config": config,
            "resources": self.resources.model_dump(mode="json"),
            "cluster": "lab",
        }
        self.run = RunDir.create("toy", record, root)
        if submit:
            self.backend.submit(self.run, self.resources, after)

    @property
    def job(self) -> str:
        """The job's id."""
        return job_id(self.run)

    @property
    def state(self) -> BackendState:
        return self.backend.states([self.run])[self.run.id]

    def steps(self) -> list[int]:
        return [line["step"] for line in self.run.read_metrics()]

    def world(self) -> int:
        return int((self.run.read_metrics() or [{"world": 0}])[-1]["world"])

    def reach(self, step: int, patience: Patience = Patience.STEP) -> None:
        until(lambda: max(self.steps(), default=0) >= step, patience)

    def host_of(self, node: int) -> str:
        """Slurm's name of a node of the newest attempt."""
        agents = read_lines(self.run.attempt_dir(self.run.attempts()[-1]) / "agents.jsonl")
        return str([a["address"] for a in agents if a["node"] == node][-1])

    def finish(self, patience: Patience = Patience.RUN) -> Outcome:
        """Wait for the final outcome."""
        return finish(self.run, patience)

    def said(self) -> str:
        """All logs and events, for the message of a failed test."""
        return said(self.run)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.run.read_events() if event["event"] == kind]


def finish(run: RunDir, patience: Patience = Patience.RUN) -> Outcome:
    """Wait for a run's final outcome; all that was said is the message if there is none."""

    def final() -> Outcome | None:
        outcome = run.last_outcome()
        return outcome if outcome is not None and outcome.state.final else None

    try:
        result: Outcome = until(final, patience)
    except AssertionError:
        raise AssertionError(said(run)) from None
    return result


def said(run: RunDir) -> str:
    """All logs and events of a run."""
    logs = sorted(run.path.glob("attempts/*/logs/*.log"))
    return "\n".join([*(f"== {p.relative_to(run.path)}\n{p.read_text()[-2000:]}" for p in logs), str(run.read_events())])

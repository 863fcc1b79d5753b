"""A job that others add, with a view of its own: a server with an address, and canaries that it has started."""

from pathlib import Path
from typing import Any

from rich.text import Text

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Engine, JobSpec
from ropewalk.jobs.runs.show.view import RunView


class ViewedConfig(JobConfig):
    """Keys of every job."""


class ViewedView(RunView):
    """View of such a run for general code."""

    def children(self) -> list[RunDir]:
        return [RunDir(path) for path in sorted(self.run.path.parent.glob("canary-*"))]

    def before_cancel(self) -> None:
        self.run.event("drained")

    def plain(self) -> dict[str, Any]:
        return {"address": "http://node-0:8000"}

    def words(self) -> str:
        return "2 replicas at http://node-0:8000"

    def live(self) -> Text:
        return Text("replica 0: ready")

    def ending(self, result: Any) -> Text:
        return Text(f"served until {result['state']}")

    def pictures(self, file: Path | None) -> list[Path]:
        return [self.run.path / "latency.png"]

    def explain(self) -> list[str]:
        return ["replica 1: CUDA out of memory"]

    def explain_child(self, child: RunDir) -> str:
        return f"It is a canary of {self.run.id}."

    def wandb_group(self) -> str:
        return "servers"


SPEC = JobSpec(
    name="viewed",
    summary="A server.",
    config="tests.fakes.viewed:ViewedConfig",
    entry="tests.fakes.viewed:main",
    engine=Engine.PROCESS,
    view="tests.fakes.viewed:ViewedView",
)

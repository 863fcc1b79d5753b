"""Start toy runs on virtual nodes, and look at them until something has happened."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.config import Resources
from ropewalk.cluster.process.kill import processes_of, writers_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from tests.conftest import short_folder
from tests.patience import Patience, until

ROOT = Path(__file__).parents[2]


class ToyRun:
    """A run of one of tests/fakes/toy.py's entries on the local backend."""

    def __init__(self, root: Path, entry: str, engine: str, after: tuple[str, ...] = (), **settings: Any) -> None:
        self.backend = LocalBackend(Profile(name="local", backend="local"))
        self.resources = Resources.model_validate(settings.pop("resources", {}))
        extra = {key: settings.pop(key, None) for key in ("packages", "secrets", "cluster")}
        record = {
            "job": "toy",
            "entry": entry if ":" in entry else f"tests.fakes.toy:{entry}",
            "engine": engine,
            "preload": ["torch", *settings.pop("preload", [])],
            "sidecars": [],
            "required_environment": settings.pop("required_environment", {}),
            "config": settings,
            "resources": self.resources.model_dump(mode="json"),
            **{key: value for key, value in extra.items() if value},
        }
        self.run = RunDir.create("toy", record, root)
        self.disturbed = False  # the supervisor itself was killed, so nobody is left to tidy up
        self.handle = self.backend.submit(self.run, self.resources, after)

    @property
    def state(self) -> Any:
        return self.backend.states([self.run])[self.run.id]

    def finish(self, patience: Patience = Patience.RUN) -> Any:
        until(lambda: self.state.word in {"ended", "lost"}, patience)
        return self.run.last_outcome()

    def steps(self) -> list[int]:
        return [line["step"] for line in self.run.read_metrics()]

    def reach(self, step: int) -> None:
        until(lambda: max(self.steps(), default=0) >= step)

    def rank_pid(self, rank: int, attempt: int = 1) -> int:
        return writers_of(self.run.log_dir(attempt) / f"rank-{rank}.log")[0].pid

    def kill_node(self, node: int, attempt: int = 1) -> None:
        agents = read_lines(self.run.attempt_dir(attempt) / "agents.jsonl")
        os.killpg([a["pid"] for a in agents if a["node"] == node][-1], signal.SIGKILL)

    def supervisor(self) -> psutil.Process:
        return psutil.Process(int(self.handle.partition(":")[2]))


@pytest.fixture(scope="module", autouse=True)
def _warm(warm: None) -> None:
    """Use the fork server."""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ToyRun]]:
    """Start toy runs; whatever is left of them is ended with the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    disk = short_folder(Path("/tmp"))
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setattr("tempfile.tempdir", None)
    started: list[ToyRun] = []

    def start(entry: str, engine: str, **settings: Any) -> ToyRun:
        started.append(ToyRun(tmp_path / "runs", entry, engine, **settings))
        return started[-1]

    yield start
    for run in started:
        if psutil.pid_exists(int(run.handle.partition(":")[2])) and run.state.word not in {"ended", "lost"}:
            for process in [*run.supervisor().children(recursive=True), run.supervisor()]:
                process.kill()
    try:
        until(lambda: not [*processes_of(tmp_path), *processes_of(disk)], Patience.START)
        left = [path for path in disk.iterdir() if not any(item.disturbed for item in started)]
        assert not left, "a run leaves nothing in the temporary directory"
    finally:
        shutil.rmtree(disk)

"""The backend that cluster/README.md shows is found, runs a run, waits for another and refuses what it cannot do."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.cluster.backends.base import Backend
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from tests.patience import Patience, until

ROOT = Path(__file__).parents[2]
AT = """#!/bin/sh
script=$(cat)
setsid sh -c "$script" </dev/null >/dev/null 2>&1 &
echo "job 7 at Thu Nov 26 19:00:00 2026" >&2
"""


def section() -> str:
    text = (ROOT / "cluster/README.md").read_text()
    return re.split(r"^## ", text.partition("## Add a scheduler\n")[2], flags=re.MULTILINE)[0]


def block(language: str) -> str:
    match = re.findall(rf"```{language}\n(.*?)```", section(), flags=re.DOTALL)
    assert len(match) == 1, f"one block of {language}"
    return str(match[0])


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """The README's module, entry point and profile as a user would write them down; another program answers as `at`."""
    package, entry = tmp_path / "package", re.findall(r"\[project\.entry-points\.\"(.+)\"\]\n(.+)", block("toml"))[0]
    (package / "ropewalk_at-1.dist-info").mkdir(parents=True)
    (package / "ropewalk_at-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: ropewalk-at\nVersion: 1\n")
    (package / "ropewalk_at-1.dist-info/entry_points.txt").write_text(f"[{entry[0]}]\n{entry[1].replace(chr(34), '')}\n")
    (package / "ropewalk_at.py").write_text(block("python"))
    (tmp_path / "clusters.yaml").write_text(block("yaml"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/at").write_text(AT)
    (tmp_path / "bin/at").chmod(0o755)
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    yield load_backend("tonight")
    until(lambda: not processes_of(tmp_path), Patience.START)


def made(root: Path) -> RunDir:
    record = {"job": "toy", "entry": "tests.fakes.toy:place", "engine": "process", "preload": [], "sidecars": [], "config": {}}
    return RunDir.create("toy", {**record, "resources": Resources().model_dump(mode="json"), "cluster": "tonight"}, root)


def test_the_backend_of_the_readme_runs_a_run_after_another(backend: Backend, tmp_path: Path) -> None:
    first, second = made(tmp_path / "runs"), made(tmp_path / "runs")
    assert backend.submit(first, Resources()) == "at:7"
    backend.submit(second, Resources(), after=[first.id])
    until(lambda: backend.states([second])[second.id].state is RunState.SUCCEEDED)
    before, after = first.last_outcome(), second.last_outcome()
    assert before is not None
    assert after is not None
    assert (before.state, after.started >= before.ended) == (RunState.SUCCEEDED, True)


def test_its_defaults(backend: Backend, tmp_path: Path) -> None:
    runs = [made(tmp_path / "runs") for _ in range(3)]
    assert backend.render_many(runs, Resources()).splitlines()[1:] == ["# and 2 more"]
    with pytest.raises(ConfigError, match=r"--at-once 2: cluster 'tonight' has no such limit; remove"):
        backend.submit_many(runs, Resources(), at_once=2)
    assert not runs[0].attempts(), "and nothing is left of it"
    assert backend.start_estimate(runs[0], Resources()) == ""
    assert backend.path_here("/data") == Path("/data")
    assert (backend.checks(), backend.shares_files, backend.ships_code) == ([], True, False)

"""A shell in an empty directory, with clusters that are made up."""

from pathlib import Path

import pytest
import yaml

from tests.fakes.token_files import write_dataset
from tests.jobs.shell import Shell


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    plugin = tmp_path / "plugin"
    (plugin / "fake-1.0.dist-info").mkdir(parents=True)
    (plugin / "fake-1.0.dist-info/entry_points.txt").write_text("[ropewalk.backends]\nfake = tests.fakes.backend:FakeBackend\n")
    (plugin / "fake-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(plugin))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    monkeypatch.setenv("COLUMNS", "200")
    base = {"backend": "fake", "log": str(tmp_path / "asked.jsonl")}
    clusters = {
        "good": {**base, "outcome": "SUCCEEDED", "results": {"step": 3, "train/loss": 1.5}},
        "bad": {**base, "outcome": "FAILED", "cause": "rank 0: ZeroDivisionError: oh", "well": False},
        "slow": base,
        "shipping": {**base, "ships_code": True},
        "closed": {**base, "refuse": "the queue is closed until Monday"},
    }
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(clusters))
    write_dataset(tmp_path / "data", [5000], [600])
    return Shell(capsys, monkeypatch, tmp_path)

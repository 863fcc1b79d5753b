"""A shell in an empty directory, with clusters that are made up; a W&B server that records."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.fakes.token_files import write_dataset
from tests.fakes.wandb_server import WandbServer, serving
from tests.jobs.shell import Shell


@pytest.fixture(scope="module", autouse=True)
def _warm(warm: None) -> None:
    """Use the fork server."""


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


@pytest.fixture
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server of the test's own, for this process and its children; the runs' root lies in the test's folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    for name in ("WANDB_SERVICE", "WANDB_SILENT", "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL"):  # wandb in this process sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        yield server
        if "wandb" in sys.modules:
            sys.modules["wandb"].teardown()

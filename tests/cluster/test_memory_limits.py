"""Limits and kills of control groups, of both versions."""

from pathlib import Path

import pytest

from ropewalk.cluster.process import memory_limits


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory_limits, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory_limits, "_OWN", tmp_path / "own")
    return tmp_path


def test_version_2(groups: Path) -> None:
    (groups / "own").write_text("0::/user/job\n")
    (groups / "user/job").mkdir(parents=True)
    (groups / "user/memory.max").write_text("4000000\n")
    (groups / "user/job/memory.max").write_text("max\n")
    (groups / "user/job/memory.events").write_text("low 0\noom 4\noom_kill 3\noom_group_kill 0\n")
    assert memory_limits.memory_bytes() == 4_000_000, "of the group above"
    assert memory_limits.kills() == 3


def test_version_1(groups: Path) -> None:
    (groups / "own").write_text("5:cpu,cpuacct:/\n4:memory:/job\n0::/\n")
    (groups / "memory/job").mkdir(parents=True)
    (groups / "memory/job/memory.limit_in_bytes").write_text("5000000\n")
    (groups / "memory/job/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert memory_limits.memory_bytes() == 5_000_000
    assert memory_limits.kills() == 1


def test_no_groups(groups: Path) -> None:
    assert memory_limits.memory_bytes() > 0
    assert memory_limits.kills() == 0

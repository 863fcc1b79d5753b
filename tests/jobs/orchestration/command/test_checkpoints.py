"""Checkpoints of a program's own making: committed with their checksums, and what is damaged is told."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ropewalk.jobs.runs.program import checkpoints
from tests.patience import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A checkpoint of three files."""
    folder = tmp_path / "step-3"
    (folder / "rank").mkdir(parents=True)
    for name in ("a.bin", "b.bin", "rank/0.bin"):
        (folder / name).write_text(name)
    return folder


def test_files_are_read_side_by_side(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, those of a large model take longer than the other ranks' collective may."""
    together = threading.Barrier(3)
    fingerprint = checkpoints._fingerprint

    def meet(file: Path) -> list[Any]:
        together.wait(HANG_SECONDS)
        return fingerprint(file)

    monkeypatch.setattr(checkpoints, "_fingerprint", meet)
    assert checkpoints.commit(shards.parent, shards, None, lambda: None)["step"] == 3
    assert checkpoints.latest(shards.parent, lambda *_: None) == shards


def test_what_is_damaged_is_named(shards: Path, tmp_path: Path) -> None:
    checkpoints.commit(tmp_path, shards, None, lambda: None)
    (shards / "b.bin").write_text("c.bin")
    assert checkpoints.damage(shards) == "b.bin does not match its checksum"
    (shards / "a.bin").unlink()
    assert checkpoints.damage(shards) == "a.bin is missing"
    (alone := tmp_path / "step-4.ckpt").write_text("all of it")
    checkpoints.commit(tmp_path, alone, None, lambda: None)
    alone.write_text("part of it")
    assert checkpoints.damage(alone) == "step-4.ckpt does not match its checksum"
    alone.unlink()
    assert checkpoints.damage(alone) == "step-4.ckpt is missing"


ENDING = """
import atexit, pathlib, sys, threading, time
from ropewalk.jobs.runs.program import checkpoints

def commit(path):
    checkpoints.commit(path.parent, path, None, lambda: None)

def save_late(path):
    threading.main_thread().join()
    commit(path)

first, second = map(pathlib.Path, sys.argv[1:])
atexit.register(commit, second)
threading.Thread(target=save_late, args=[first]).start()
"""


def test_the_last_checkpoint_is_committed_while_the_interpreter_ends(shards: Path, tmp_path: Path) -> None:
    """By a thread that saves while the program goes on, or by what a program has left for its end."""
    (other := tmp_path / "step-4.ckpt").write_text("all of it")
    subprocess.run([sys.executable, "-c", ENDING, shards, other], check=True, timeout=HANG_SECONDS, cwd=ROOT)
    assert checkpoints.committed(tmp_path) == ["step-3", "step-4.ckpt"]

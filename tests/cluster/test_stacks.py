"""Stacks of processes that cannot tell them themselves, and of those that must."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.engines.stacks import Stack, _threads, take_stacks, write_stacks
from tests.cluster.conftest import ROOT
from tests.patience import Patience, until

PROGRAM = """
import os, pathlib, sys, threading, time
from ropewalk.cluster.engines.stacks import allow_stack_dumps
allow_stack_dumps(os.getppid(), pathlib.Path(sys.argv[1]))

def bring(): threading.Event().wait()

def spin():
    pathlib.Path(sys.argv[1] + ".up").touch()
    while True: pass

threading.Thread(target=bring, name="prefetch", daemon=True).start()
spin()
"""

Begin = Callable[[], tuple[int, Path]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[int, Path]:
        (tmp_path / "program.py").write_text(PROGRAM)
        file = tmp_path / f"stacks-{len(started)}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen([sys.executable, str(tmp_path / "program.py"), str(file)], env=environment))
        until(lambda: Path(f"{file}.up").exists(), Patience.START)
        return started[-1].pid, file

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_of_one_that_is_stopped_and_one_that_holds_the_interpreter(begin: Begin, tmp_path: Path) -> None:
    (running, a), (stopped, b) = begin(), begin()
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: psutil.Process(stopped).status() == psutil.STATUS_STOPPED, Patience.SIGNAL)
    stacks = take_stacks({0: running, 1: stopped}, {0: a, 1: b})
    for stack in stacks.values():
        assert stack.text == ""
        assert "spin (" in stack.location()
        assert "program.py:10)" in stack.location()
        assert re.search(r", its prefetch: \S*wait in bring \(", stack.location(waits_for_data=True))
    assert stacks[1].state == "stopped"
    write_stacks(tmp_path / "stacks" / "node-0.txt", {**stacks, 2: stacks[1]}, {0: "step"})
    text = (tmp_path / "stacks" / "node-0.txt").read_text()
    assert text.startswith(f"rank 0, process {running} (")
    equal = f"rank {{}}, process {stopped} (stopped), phase: starting\n"
    assert f"{equal.format(1)}{equal.format(2)}\nthread MainThread\n    spin (" in text


def test_where_it_may_not_look_the_process_tells_itself(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    (running, a), (stopped, b) = begin(), begin()
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: psutil.Process(stopped).status() == psutil.STATUS_STOPPED, Patience.SIGNAL)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    stacks = take_stacks({0: running, 1: stopped}, {0: a, 1: b})
    assert "line 10 in spin" in stacks[0].location()
    assert stacks[1].location() == "no stack: py-spy is not installed, and a stopped process cannot dump its stacks"


def test_what_is_gone_is_said_to_be(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert take_stacks({3: ended.pid}, {3: tmp_path / "x"})[3].location() == "the process is gone"


def test_a_collective_is_named_with_the_place_that_called_it() -> None:
    frames = [
        ("all_reduce", f"{sys.prefix}/lib/python3/site-packages/torch/distributed/distributed_c10d.py", 3252),
        ("wrapper", f"{sys.prefix}/lib/python3/site-packages/torch/distributed/c10d_logger.py", 83),
        ("sum", f"{ROOT}/sharding/group.py", 40),
    ]
    raw = [{"name": name, "filename": file, "line": line} for name, file, line in frames]
    sys.path.insert(0, f"{sys.prefix}/lib/python3/site-packages")
    try:
        threads = _threads([{"thread_id": 1, "os_thread_id": 7, "thread_name": None, "frames": raw}], 7)
    finally:
        sys.path.pop(0)
    assert Stack(7, "sleeping", threads).location() == "all_reduce in sum (sharding/group.py:40)"

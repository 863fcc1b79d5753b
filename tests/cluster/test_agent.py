"""The agent at moments that no run can be made to reach at will: it leaves, and something is about to start."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.agent.version import installed_version
from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_NEVER_RETRY, EXIT_REQUEUE
from ropewalk.cluster.process.kill import end, family
from ropewalk.cluster.process.signals import ShutdownGate, stop_signals_blocked
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import machine
from ropewalk.cluster.run.key import new_key, write_private
from ropewalk.cluster.run.names import GROUP_KEY
from ropewalk.cluster.supervise.allocation import AgentSpec, GroupServerSpec
from tests.cluster.conftest import ROOT
from tests.patience import HANG_SECONDS, Patience, ended, until

LINGERING = """
import pathlib, signal, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
while not pathlib.Path(__file__).with_name("enough").exists():
    time.sleep(0.05)
"""

# as a rank of a loaded machine: it looks for its parent when that has long been gone
ORPHAN = """
import multiprocessing, os, signal, sys, time
from multiprocessing import forkserver
from ropewalk.cluster.engines.entry import die_with_parent

def rank(mark):
    print(os.getpid(), file=open(mark, "w"))
    time.sleep(1.0)
    die_with_parent()
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("forkserver").Process(target=rank, args=(sys.argv[1],)).start()
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    os._exit(0)
"""


def test_no_rank_starts_once_its_agent_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank would outlive the agent. The group forms while the stopping agent waits for its sidecar."""
    (tmp_path / "lingering.py").write_text(LINGERING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    record = {"config": {"steps": 100000}, "entry": "tests.fakes.toy:tick", "engine": "ranks", "preload": ["tests.fakes.toy"]}
    run = RunDir.create("toy", {**record, "sidecars": ["lingering"], "resources": {"nodes": 2}}, tmp_path)
    attempt = run.begin_attempt()
    run.make_folders(attempt)
    write_private(run.attempt_dir(attempt) / GROUP_KEY, new_key())
    message = tmp_path / "node-0.log"

    def start(node: int, log: Path) -> subprocess.Popen[bytes]:
        command = AgentSpec(run_path=str(run.path), attempt=attempt, node=node, nodes="2", address="127.0.0.1").command()
        with log.open("wb") as stream, stop_signals_blocked():
            return subprocess.Popen(command, stdout=stream, stderr=stream)

    server = GroupServerSpec(run_path=str(run.path), attempt=attempt, nodes="2", expected=2, host="127.0.0.1")
    nodes = run.attempt_dir(attempt) / "nodes"
    started = [leaving := start(0, message), start(1, tmp_path / "node-1.log")]
    try:
        until(lambda: len(list(nodes.glob("node-*.jsonl"))) == 2)  # they have loaded all, and wait for the group server
        leaving.send_signal(signal.SIGUSR2)
        until(lambda: "nothing to save" in message.read_text())
        started.append(subprocess.Popen(server.command()))
        until(lambda: list(run.log_dir(attempt).glob("rank-*.log")))
        time.sleep(1.0)  # what the other's takes
        assert leaving.poll() is None
        (tmp_path / "enough").touch()
        assert ended(leaving) == EXIT_REQUEUE
        assert "failed" not in message.read_text()
        assert len(list(run.log_dir(attempt).glob("rank-*.log"))) == 1, "that of the other agent"
    finally:
        end(process for item in started for process in family(item.pid))
        for agent in started:
            agent.wait()


def test_a_shutdown_that_fails_half_way_is_begun_again_by_the_same_thread() -> None:
    """The agent's watch looks again after an error of the machine's, such as too many open files."""
    gate, begun = ShutdownGate(), []

    def shut() -> None:
        for _ in range(2):
            gate.begin()
            begun.append(gate.begin_if_nothing_runs())

    thread = threading.Thread(target=shut, daemon=True)
    thread.start()
    until(lambda: len(begun) == 2)


def test_a_rank_without_agent_and_server_ends_however_late_it_looks(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, tmp_path / "orphan.py", tmp_path / "pid"], env=environment, check=True, timeout=HANG_SECONDS)
    pid = int(until((tmp_path / "pid").read_text))
    until(lambda: not psutil.pid_exists(pid), Patience.SIGNAL)


def test_an_entry_whose_agent_was_gone_before_it_looked_ends(tmp_path: Path) -> None:
    record = {"config": {"steps": 100000}, "entry": "tests.fakes.toy:tick", "engine": "process", "resources": {}}
    run = RunDir.create("toy", record, tmp_path)
    run.make_folders(run.begin_attempt())
    command = [sys.executable, "-m", "ropewalk.cluster.engines.entry", str(run.path), "--attempt", "1", "--parent", "1"]
    assert subprocess.run(command, cwd=ROOT, timeout=HANG_SECONDS, check=False).returncode == EXIT_LOST_PEER


def test_a_stop_is_handed_on_though_no_event_can_be_written(tmp_path: Path) -> None:
    record = {"config": {"steps": 100000}, "entry": "tests.fakes.toy:tick", "engine": "process", "resources": {"nodes": 1}}
    run = RunDir.create("toy", record, tmp_path)
    number = run.begin_attempt()
    (run.events.folder / f"{machine()}.jsonl").symlink_to(tmp_path / "gone" / "file")
    command = AgentSpec(run_path=str(run.path), attempt=number, node=0, nodes="1", address="127.0.0.1").command()
    with stop_signals_blocked():
        agent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        until(run.read_metrics, Patience.START)
        agent.send_signal(signal.SIGUSR2)
        assert ended(agent) == EXIT_REQUEUE
    finally:
        end(family(agent.pid))
        agent.wait()


@pytest.mark.parametrize(("apart", "code"), [(True, EXIT_NEVER_RETRY), (False, EXIT_DONE)])
def test_a_node_with_another_version_says_so_before_anything_starts(tmp_path: Path, apart: bool, code: int) -> None:
    here = installed_version()
    if here is None:
        pytest.skip("needs the program installed: pip install -e .")
    wanted = "99.1.0" if apart else f"{here}.post1"
    record = {"config": {"steps": 1}, "entry": "tests.fakes.toy:place", "engine": "process", "versions": {"ropewalk": wanted}}
    run = RunDir.create("toy", {**record, "resources": {"nodes": 1}, "cluster": "far"}, tmp_path)
    number = run.begin_attempt()
    run.make_folders(number)
    command = AgentSpec(run_path=str(run.path), attempt=number, node=0, nodes="1", address="127.0.0.1").command()
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=HANG_SECONDS)
    assert done.returncode == code
    messages = [event for event in run.read_events() if event["event"] == "other_version"]
    assert [(event["wanted"], event["here"]) for event in messages] == [(wanted, here)]
    assert [error["exit_code"] for error in run.read_errors(number)] == ([code] if apart else [])
    assert bool(run.results()) is not apart

"""Logs of ranks: one each, or one a node in a large group."""

import multiprocessing
import re
import sys
from pathlib import Path
from typing import Any

from ropewalk.cluster.engines.rank import run_rank
from ropewalk.cluster.engines.ranks import RanksNode
from ropewalk.cluster.process.signals import ShutdownGate
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.group_line import Assignment, GroupLine
from tests.fork_server import SERVER

RANKS = 4
PROGRAM = """
import os, sys
for number in range(50):
    print("piece", number, end=" ")
    print("of", os.environ["RANK"])
if os.environ["RANK"] == "2":
    raise ValueError("of rank 2 alone")
"""


def node_of(run: RunDir, most_nodes: int) -> RanksNode:
    return RanksNode(
        run=run,
        attempt=1,
        index=3,
        most_nodes=most_nodes,
        ranks_per_node=8,
        address="127.0.0.1",
        stop_flag=run.path / "stop",
        gate=ShutdownGate(),
    )


def run_ranks_of(run: RunDir, shared_log: str) -> list[int | None]:
    """Run the entry on ranks 0 to 3 of a node, without a group. Returns their exit codes."""
    node = JobContext(run=run, attempt=1, stop_flag=run.path / "stop", shared_log=shared_log)
    processes = [SERVER.Process(target=rank_main, args=(rank, node)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def rank_main(rank: int, node: JobContext) -> None:
    variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    agent, line = multiprocessing.Pipe()
    code = run_rank(node, Assignment(group=1, variables=variables), GroupLine(line, may_stay=False))
    agent.close()
    sys.exit(code)


def begun(root: Path, **record: Any) -> RunDir:
    run = RunDir.create("r", {"job": "command", "config": {}, "resources": {}, **record}, root)
    run.begin_attempt()
    return run


def test_ranks_of_a_large_group_share_a_log_of_whole_lines(tmp_path: Path) -> None:
    run = begun(tmp_path, entry="tests.fakes.toy:chat")
    assert node_of(run, most_nodes=8).shared_log == ""
    assert run_ranks_of(run, node_of(run, most_nodes=9).shared_log) == [0] * RANKS
    assert sorted(path.name for path in run.log_dir(1).iterdir()) == ["rank-0.log", "ranks-3.log"]
    assert len((run.log_dir(1) / "rank-0.log").read_text().splitlines()) == 102
    lines = (run.log_dir(1) / "ranks-3.log").read_text().splitlines()
    for rank in range(1, RANKS):
        mine = [line.removeprefix(f"rank {rank} | ") for line in lines if line.startswith(f"rank {rank} | ")]
        logged = [line for line in mine if re.fullmatch(rf".* rank {rank} INFO tests.fakes.toy: all said", line)]
        assert [line for line in mine if line not in logged] == [
            *(f"piece {number} of {rank}" for number in range(100)),
            f"the last of {rank}",
        ]
        assert len(logged) == 1
    assert len(lines) == 102 * (RANKS - 1), "nothing else"


def test_programs_of_ranks_that_share_a_log_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    config = {"command": [sys.executable, "program.py"], "directory": str(tmp_path)}
    run = begun(tmp_path / "runs", entry="ropewalk.jobs.orchestration.command.job:main", config=config)
    assert run_ranks_of(run, "ranks-3.log") == [0, 0, 1, 0]
    lines = (run.log_dir(1) / "ranks-3.log").read_text().splitlines()
    for rank in range(1, RANKS):
        assert [line for line in lines if line.startswith(f"rank {rank} | piece")] == [
            f"rank {rank} | piece {number} of {rank}" for number in range(50)
        ]
    (error,) = run.read_errors(1)
    assert error["message"] == "the program ended with exit code 1: ValueError: of rank 2 alone"

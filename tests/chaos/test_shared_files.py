"""A training run on real Slurm whose nodes share files as NFS shares them: each with caches of its own, a minute old."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import parse_lines, read_lines
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.processes import on_nodes
from tests.fakes.nfs import Network, SlurmNetwork
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, weights
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT, MakeLab, make_lab  # noqa: F401
from tests.slurm.toy import said

EVERY_STEPS = 10


@dataclass
class Scene:
    """A cluster, the files that its nodes share, and a data set."""

    lab: Lab
    shared: SlurmNetwork
    data: Path

    def train(self, cluster: str, steps: int, **changes: Any) -> RunDir:
        config = {
            "data": str(self.data),
            "model": {"config": TINY},
            "seq_len": 32,
            "steps": steps,
            "batch": {"global_batch": 12, "micro_batch": 2},
            "checkpoint": {"every_steps": EVERY_STEPS},
            "validation": {"every_steps": 1000, "max_sequences": 4},
            "resources": {"nodes": 2, "grace_seconds": 20},
            "retries": {"disturbances": 100},
            **changes,
        }
        return submit("pretrain", PretrainConfig.model_validate(config), cluster)

    def host_of(self, run: RunDir, node: int) -> str:
        agents = read_lines(run.attempt_dir(run.attempts()[-1]) / "agents.jsonl")
        return str([agent["address"] for agent in agents if agent["node"] == node][-1])


def scene_of(network: Network, make: MakeLab, patch: pytest.MonkeyPatch, folder: Path, latency_milliseconds: float) -> Scene:
    shared = SlurmNetwork(make, network, 3, latency_milliseconds)
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("WANDB_MODE", "disabled")
    patch.setenv(RUNS_VARIABLE, str(shared.path / "runs"))
    patch.setenv("ROPEWALK_CLUSTERS", str(folder / "clusters.yaml"))
    (folder / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "slurm", "partition": "main", "exclusive": True}}))
    return Scene(shared.lab, shared, make_dataset(folder / "data", num_documents=800))


def committed(run: RunDir) -> list[int]:
    return [event["step"] for event in run.read_events(afresh=True) if event["event"] == "checkpoint"]


def resumed(run: RunDir) -> list[dict[str, Any]]:
    return [event for event in run.read_events(afresh=True) if event["event"] == "resumed"]


def every_resume_is_from_the_newest(run: RunDir) -> None:
    commits = [(e["time"], e["step"]) for e in run.read_events(afresh=True) if e["event"] == "checkpoint"]
    for event in resumed(run):
        assert event["step"] == max(step for when, step in commits if when < event["time"]), said(run)


def every_command_answers(run: RunDir) -> None:
    for arguments in (
        ["show", run.id],
        ["show", run.id, "--json"],
        ["ps", "--all"],
        ["why", run.id],
        ["logs", run.id],
        ["top", "--once"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ropewalk.jobs.cli", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (arguments, done.stderr[-2000:])


def damaged_lines(run: RunDir) -> dict[str, int]:
    paths = [run.metrics, *run.events.files(), *run.path.glob("attempts/*/*.jsonl"), *run.path.glob("attempts/*/nodes/*.jsonl")]
    counts = {str(path): parse_lines(path.read_bytes())[1] for path in paths if path.exists()}
    return {name: number for name, number in counts.items() if number}


def every_file_is_whole(run: RunDir, steps: int) -> None:
    lines = [line for line in run.read_metrics() if "train/loss" in line]
    assert {line["step"]: line["train/position"] for line in lines} == {step: step * 12 for step in range(1, steps + 1)}
    # a machine that loses its power in the middle of a line leaves that line; nothing else is ever broken
    assert sum(damaged_lines(run).values()) <= len(run.attempts()), damaged_lines(run)


def ends_well(run: RunDir) -> None:
    def over() -> bool:
        outcome = run.last_outcome()
        return outcome is not None and outcome.state.final

    until(over, Patience.RUN, lambda: said(run))
    assert run.last_outcome().state is RunState.SUCCEEDED, said(run)  # type: ignore[union-attr]


@pytest.mark.soak("three minutes until Slurm misses the nodes; test_shared_files.py has the same clients without Slurm")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_lose_their_power_and_the_newest_checkpoint_counts(
    network: Network,
    make_lab: MakeLab,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    scene = scene_of(network, make_lab, monkeypatch, tmp_path, latency_milliseconds=0)
    run = scene.train("lab", steps=100_000)
    for node in (1, 0):  # the first node carries the run: Slurm requeues the job
        there = max(committed(run), default=0)
        until(lambda least=there: len([step for step in committed(run) if step > least]) >= 3, Patience.STEP, lambda: said(run))
        attempt, host = run.attempts()[-1], scene.host_of(run, node)
        scene.lab.fail_node(host)
        until(lambda last=attempt: [e for e in resumed(run) if e["attempt"] > last], Patience.RUN, lambda: said(run))
        every_resume_is_from_the_newest(run)
        scene.shared.start_node(host)
    following = subprocess.Popen(
        [sys.executable, "-m", "ropewalk.jobs.cli", "logs", "-f", run.id], stdout=subprocess.PIPE, cwd=ROOT
    )
    every_command_answers(run)
    subprocess.run([sys.executable, "-m", "ropewalk.jobs.cli", "cancel", run.id], check=True, cwd=ROOT)
    until(lambda: run.last_outcome() and run.last_outcome().state is RunState.CANCELLED, Patience.RUN, lambda: said(run))  # type: ignore[union-attr]
    assert b"resumed" in following.communicate(timeout=60)[0]
    assert not damaged_lines(run)


@pytest.mark.soak("twenty kills")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("latency_milliseconds", [0, 20])
def test_twenty_random_kills_cost_nothing_that_was_committed(
    network: Network,
    make_lab: MakeLab,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    latency_milliseconds: float,
) -> None:
    scene = scene_of(network, make_lab, monkeypatch, tmp_path, latency_milliseconds)
    steps, luck = 45 * EVERY_STEPS, random.Random(0)  # each kill waits for the next checkpoint, and a quick machine goes further
    run = scene.train("lab", steps=steps, resources={"nodes": 3, "grace_seconds": 20})
    for kill in range(20):
        there = max(committed(run), default=0)
        until(lambda least=there: max(committed(run), default=0) > least, Patience.RUN, lambda: said(run))
        time.sleep(luck.random())  # anywhere between two checkpoints
        outcome = run.last_outcome()
        assert outcome is None or not outcome.state.final, "it was too quick: more steps"
        host = scene.host_of(run, luck.randrange(3))
        if kill % 2:
            scene.lab.fail_node(host)
            scene.shared.start_node(host)
        else:
            kill_ranks(scene.lab, host)
        every_resume_is_from_the_newest(run)
    ends_well(run)
    every_resume_is_from_the_newest(run)
    assert len(resumed(run)) >= 15, "a kill of ranks and a power cut may fall together"
    every_file_is_whole(run, steps)
    every_command_answers(run)
    peaceful = scene.train("local", steps=steps, resources={"nodes": 3})
    ends_well(peaceful)
    assert equal(weights(peaceful, steps), weights(run, steps))


def kill_ranks(lab: Lab, host: str) -> None:
    """SIGKILL to the ranks of a node, as the out-of-memory killer does; they are known by where they write."""
    for process in on_nodes(lab.folder, [host]):
        with suppress(OSError):
            if re.search(r"/rank-\d+\.log$", os.readlink(f"/proc/{process.pid}/fd/1")):
                os.kill(process.pid, signal.SIGKILL)

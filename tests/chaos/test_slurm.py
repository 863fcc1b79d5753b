"""A real training run on real Slurm, disturbed in every way that Slurm has, ends with the parameters of one left in peace."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.follow import wait
from ropewalk.jobs.runs.submit.submit import submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.slurm.lab.cluster import Lab
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, weights
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT, MakeLab, make_lab  # noqa: F401

log = logging.getLogger(__name__)

STEPS = 150
BATCH = 8
LIMIT_CHECK_SECONDS = 30.0  # Slurm looks at time limits so often, and first so long after its start
SOON_SECONDS = 8.0

pytestmark = [
    pytest.mark.soak("six disturbances, two minutes; test_stops.py has a preemption, test_a_dead_node_with_a_spare a dead node"),
    pytest.mark.slow,
]


@dataclass
class Scene:
    """A cluster of four nodes, and a run on two of them."""

    lab: Lab
    data: Path
    began: float = field(default_factory=time.monotonic)
    dark: list[str] = field(default_factory=list)

    def train(self, cluster: str, keys: dict[str, Any] | None = None, **resources: Any) -> RunDir:
        config = {
            "data": str(self.data),
            "model": {"config": TINY},
            "seq_len": 32,
            "steps": STEPS,
            "batch": {"global_batch": BATCH, "micro_batch": 2},
            "checkpoint": {"every_steps": 10},
            "validation": {"every_steps": 1000, "max_sequences": 4},
            # so long a notice that the first look at the time limit is late enough for it
            "resources": {"nodes": 2, "grace_seconds": 45, **resources},
            **(keys or {}),
        }
        return submit("pretrain", PretrainConfig.model_validate(config), cluster)

    def limit_is_due(self) -> bool:
        """Slurm is about to look at time limits."""
        return (time.monotonic() - self.began) % LIMIT_CHECK_SECONDS > LIMIT_CHECK_SECONDS - SOON_SECONDS

    def preempt(self, run: RunDir) -> None:
        arguments = [
            "-p",
            "high",
            f"-N{len(self.lab.nodes) - len(self.dark)}",
            "--exclusive",
            "-o",
            "/dev/null",
            "--wrap",
            "true",
        ]
        self.lab.command("sbatch", *arguments)

    def kill_first_node(self, run: RunDir) -> None:
        """The one that the job script runs on."""
        self._power_cut(run, 0)

    def kill_second_node(self, run: RunDir) -> None:
        self._power_cut(run, 1)

    def _power_cut(self, run: RunDir, node: int) -> None:
        agents = read_lines(run.attempt_dir(run.attempts()[-1]) / "agents.jsonl")
        self.dark.append([str(agent["address"]) for agent in agents if agent["node"] == node][-1])
        self.lab.fail_node(self.dark[-1])

    def light(self) -> None:
        """Power on again what was cut off."""
        while self.dark:
            self.lab.start_node(self.dark.pop())


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_lab: MakeLab) -> Scene:  # noqa: F811
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "slurm", "partition": "main", "exclusive": True}}))
    return Scene(lab=make_lab(nodes=4), data=make_dataset(tmp_path / "data", num_documents=800))


def steps_of(run: RunDir, attempt: int) -> list[int]:
    return [m["step"] for m in run.read_metrics() if m["attempt"] == attempt and "train/loss" in m]


def next_attempt(run: RunDir, old: int) -> int:
    """The one that follows, once it has completed three steps or is over."""

    def there() -> int | None:
        newest = run.attempts()[-1]
        return newest if newest > old and (len(steps_of(run, newest)) >= 3 or run.outcome(newest)) else None

    result: int = until(there, Patience.RUN)
    return result


def ended(run: RunDir, attempt: int) -> Outcome:
    result: Outcome = until(lambda: run.outcome(attempt), Patience.RUN)
    return result


def seconds_to_next_step(run: RunDir, attempt: int, since: float) -> float:
    first = min(m["time"] for m in run.read_metrics() if m["attempt"] > attempt and "train/loss" in m)
    return float(first - since)


def disturb(scene: Scene, run: RunDir, plan: list[tuple[str, Callable[[RunDir], None]]]) -> dict[int, tuple[str, float]]:
    """Carry out a plan of (words of the outcome, disturbance), one an attempt, and the time limit between whichever.

    Returns when each attempt was disturbed, and by what.
    """
    report: dict[int, tuple[str, float]] = {}
    limited, attempt = False, 0
    while plan or not limited:
        attempt = next_attempt(run, attempt)
        text, act = plan[0] if plan else ("time limit", None)
        if act is not None and run.outcome(attempt) is None and (limited or not scene.limit_is_due()):
            report[attempt] = (text, time.time())
            act(run)
        outcome = ended(run, attempt)
        if "time limit" in outcome.cause:
            requests = [e["time"] for e in run.read_events() if e["event"] == "stop_requested" and e["attempt"] == attempt]
            report[attempt] = ("time limit", min(requests))
            limited = True
            job = str(run.attempt_details(attempt)["handle"]).partition(":")[2]
            scene.lab.command("scontrol", "update", f"JobId={job}", "TimeLimit=60")  # once is enough
        else:
            assert text in outcome.cause, outcome
            plan.pop(0)
    scene.light()  # not sooner: orders to kill that Slurm could not deliver reach a node up to a minute later
    return report


def steps_are_all_there(run: RunDir) -> None:
    """Every sample once: what the attempts kept, put together, is every step at its place in the data."""
    lines = [m for m in run.read_metrics() if "train/loss" in m]
    assert {m["step"]: m["train/position"] for m in lines} == {step: step * BATCH for step in range(1, STEPS + 1)}
    at_work = [attempt for attempt in run.attempts() if steps_of(run, attempt)]  # one may be ended before its first step
    for last, attempt in pairwise(at_work):
        before = [m["step"] for m in lines if m["attempt"] < attempt]
        announced = ended(run, last).exit_code == 85
        if announced:
            assert steps_of(run, attempt)[:1] == [before[-1] + 1], f"attempt {attempt} repeats or leaves out a step"
        else:
            assert before[-1] - 10 <= steps_of(run, attempt)[0] <= before[-1] + 1, "more was lost than since the last checkpoint"


def succeed(run: RunDir) -> RunDir:
    wait(run)
    last = run.last_outcome()
    assert last is not None
    assert last.state is RunState.SUCCEEDED, last
    return run


def test_preempted_limited_and_bereft_of_nodes_it_learns_the_same(scene: Scene) -> None:
    run = scene.train("lab", time_limit_minutes=1)
    plan = [
        ("preempted", scene.preempt),
        ("node 1 died", scene.kill_second_node),
        ("preempted", scene.preempt),
        ("the first node was lost", scene.kill_first_node),
        ("preempted", scene.preempt),
    ]
    disturbances = disturb(scene, run, plan)
    succeed(run)
    for attempt, (text, since) in disturbances.items():
        log.info("attempt %d, %s: %.1f s to the next step", attempt, text, seconds_to_next_step(run, attempt, since))
    causes = [(ended(run, a).exit_code, message) for a, (message, _) in disturbances.items() if message != "time limit"]
    assert causes == [(143 if "node" in message else 85, message) for _, message in causes]
    assert [ended(run, a).exit_code for a, (message, _) in disturbances.items() if message == "time limit"] == [85]
    assert ended(run, run.attempts()[-1]).exit_code == 0
    steps_are_all_there(run)

    peaceful = succeed(scene.train("local"))
    learned = weights(run, STEPS)
    assert any("exp_avg" in name for name in learned), "the optimizer's state is compared too"
    assert equal(weights(peaceful, STEPS), learned)


def test_a_dead_node_costs_one_step_at_most_with_copies_in_memory(scene: Scene) -> None:
    keys = {"checkpoint": {"every_steps": 1000, "memory_every_steps": 1}, "steps": 20_000}
    run = scene.train("lab", keys, nodes="1..2")
    until(lambda: len(steps_of(run, 1)) > 10, Patience.RUN)
    scene.kill_second_node(run)
    event = until(lambda: next((e for e in run.read_events() if e["event"] == "resumed"), None), Patience.RUN)
    assert (event["tier"], event["world_size"]) == ("memory", 1)
    done = [m["step"] for m in run.read_metrics() if "train/loss" in m and m["time"] < event["time"]]
    assert max(done) - event["step"] <= 1
    assert [*cancel_runs([run.id])]
    ended(run, 1)

"""A sweep as its driver and its trials leave it on disk: a made-up loss over made-up parameters, stopped by halving."""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, write_json
from ropewalk.cluster.spec import Outcome, RunState

METRIC = "validation/loss"
SPACE: dict[str, Any] = {
    "optim.lr": {"loguniform": [1e-4, 1e-1]},
    "optim.weight_decay": {"uniform": [0.0, 0.3]},
    "optim.warmup_steps": {"randint": [0, 40]},
    "optim.schedule": {"choice": ["cosine", "constant", "wsd"]},
}
BASE: dict[str, Any] = {"data": "data", "steps": 270, "seq_len": 16, "optim": {"schedule": "cosine"}}
START = 1_790_000_000.0


def sample(generator: random.Random, space: Mapping[str, Mapping[str, Any]] = SPACE) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for key, item in space.items():
        kind, value = next(iter(item.items()))
        if kind == "loguniform":
            results[key] = math.exp(generator.uniform(math.log(value[0]), math.log(value[1])))
        elif kind == "uniform":
            results[key] = generator.uniform(*value)
        elif kind == "randint":
            results[key] = generator.randrange(*value)
        else:
            results[key] = generator.choice(value)
    return results


def loss(parameters: Mapping[str, Any], step: int, steps: int) -> float:
    """Best at a learning rate of 3e-3; the schedule matters a little, the rest hardly."""
    far = math.log10(parameters.get("optim.lr", 3e-3) / 3e-3)
    worst = {"cosine": 0.0, "wsd": 0.03, "constant": 0.08}.get(str(parameters.get("optim.schedule")), 0.0)
    return 3.0 + 0.35 * far**2 + worst + 4.0 * math.exp(-5 * step / steps)


def make_trial_run(
    root: Path, name: str, config: Mapping[str, Any], values: Mapping[int, float], parent: str | None = None, **outcome: Any
) -> RunDir:
    """An ordinary run with these values of the metric; without an outcome it goes on."""
    record = {
        "job": "pretrain",
        "entry": "ropewalk.jobs.training.pretrain.job:main",
        "engine": "ranks",
        "config": dict(config),
        "cluster": "good",
    }
    record |= {"parent": parent} if parent else {}
    run = RunDir.create(name, {**record, "resources": {"nodes": 1}, "created": START}, root)
    attempt = run.begin_attempt()
    for step, value in values.items():
        line = {"step": step, "attempt": attempt, "time": START + step, "train/loss": value + 0.1, METRIC: value}
        append_line(run.metrics, line)
    if outcome:
        cause = outcome.get("cause", "done")
        ended = {"exit_code": 0, "started": START, "ended": START + max(values, default=0), "cause": cause}
        run.write_outcome(attempt, Outcome(**{**ended, **outcome}))
    return run


def make_sweep(
    root: Path, trials: int = 16, *, steps: int = 270, stops: bool = True, seed: int = 0, name: str = "twist", **config: Any
) -> RunDir:
    """A sweep that is over: every third of the trials at each rung goes on, one trial failed where there are five or more."""
    generator = random.Random(seed)
    sweep_config = {"job": "pretrain", "base": {**BASE, "steps": steps}, "space": SPACE, "metric": METRIC, "mode": "min"}
    sweep_config |= {"trials": trials, "scheduler": "asha", "search": "random", "seed": seed, "name": name, **config}
    record = {
        "job": "sweep",
        "entry": "ropewalk.jobs.orchestration.sweep.job:main",
        "engine": "process",
        "config": sweep_config,
        "cluster": "good",
    }
    sweep = RunDir.create(name, {**record, "resources": {"nodes": 1}, "created": START}, root)
    attempt = sweep.begin_attempt()
    (sweep.path / "trials").mkdir()
    drawn = [sample(generator, sweep_config["space"]) for _ in range(trials)]
    rungs = [steps // 9, steps // 3] if stops else []
    ends = [steps] * trials
    for rung in rungs:
        ranked = sorted((k for k in range(trials) if ends[k] > rung), key=lambda k: loss(drawn[k], rung, steps))
        for k in ranked[max(1, len(ranked) // 3) :]:
            ends[k] = rung
    failed = trials // 2 if trials >= 5 else None
    for k, parameters in enumerate(drawn):
        every = max(1, steps // 27)
        end = every * 3 if k == failed else ends[k]
        noise = random.Random(k)
        values = {s: loss(parameters, s, steps) + noise.gauss(0, 0.005) for s in range(every, end + 1, every)}
        state = "FAILED" if k == failed else "SUCCEEDED" if ends[k] == steps else "STOPPED"
        ended = {"FAILED": RunState.FAILED, "SUCCEEDED": RunState.SUCCEEDED, "STOPPED": RunState.CANCELLED}[state]
        cause = {"FAILED": "rank 0: RuntimeError: CUDA out of memory", "STOPPED": "asha stopped it"}.get(state, "")
        about = {"parent": sweep.id, "state": ended, "cause": cause or "done"}
        run = make_trial_run(root, f"{name}-trial-{k}", sweep_config["base"], values, **about)
        write_record(sweep, k, parameters, [run.id], state, stopped_at=end if state == "STOPPED" else None, cause=cause)
    sweep.write_outcome(attempt, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done", started=START, ended=START + 900))
    return sweep


def write_record(sweep: RunDir, trial: int, parameters: Mapping[str, Any], runs: list[str], state: str, **more: Any) -> None:
    record = {"trial": trial, "parameters": dict(parameters), "runs": runs, "state": state}
    rest = {"stopped_at": None, "cause": "", "lineage": [], "created": START, "ended": START + 100}
    write_json(sweep.path / "trials" / f"{trial:04d}.json", {**record, **rest, **more})

"""Baseline runs of a distillation: the same student with cross entropy alone, and both sides with more seeds.

They are separate `distill` runs beside it, for which its submission waits, so that no process has to wait for them.
"""

from collections.abc import Sequence
from typing import Any

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.backends.submission import Dependency
from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import dated_label, locked
from ropewalk.jobs.results.compare import Comparison, compare_pairs
from ropewalk.jobs.results.statistics import mean_error
from ropewalk.jobs.runs.submit.children import start_child
from ropewalk.jobs.runs.submit.records import make_record
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.measure import STUDENT

LOCK = "baseline.lock"  # in the run: serializes concurrent resumes
ORIGIN = ("created", "versions", "command", "code", "directory")  # copied from the run's record: the arms run the same code
LOCAL = "local"  # backend on which the arms run one after the other
DISTILLED, CROSS_ENTROPY = "distilled", "cross entropy"


def arms(config: DistillConfig, run_id: str) -> dict[str, DistillConfig]:
    """Return configurations of the needed runs by name (`cross entropy, seed 1`); the run itself is the first distilled one."""
    if config.baseline is None:
        return {}
    seeds = seeds_of(config)
    values = {**config.model_dump(mode="json"), "baseline": None}
    label = config.name or "distill"
    configs: dict[str, DistillConfig] = {}
    sides: tuple[tuple[str, dict[str, Any]], ...] = ((CROSS_ENTROPY, {"alpha": 1.0, "on_policy": None}), (DISTILLED, {}))
    for side, changes in sides:
        for seed in seeds if side == CROSS_ENTROPY else seeds[1:]:
            short = "ce" if side == CROSS_ENTROPY else "kd"
            group = {**values["wandb"], "group": values["wandb"]["group"] or run_id}
            arm_values = {**values, **changes, "seed": seed, "name": f"{label}-{short}-{seed}", "wandb": group}
            configs[arm_name(side, seed)] = DistillConfig.model_validate(arm_values)
    return configs


def seeds_of(config: DistillConfig) -> list[int]:
    """Return the seeds of both sides."""
    assert config.baseline is not None
    return [(config.seed + number) % 2**32 for number in range(config.baseline.seeds)]


def arm_name(side: str, seed: int) -> str:
    """Return the name of a run in the comparison."""
    return f"{side}, seed {seed}"


def config_of_run(run: RunDir) -> DistillConfig:
    """Return the configuration of a distillation run."""
    return DistillConfig.model_validate(run.record["config"])


def arm_runs(run: RunDir, config: DistillConfig) -> dict[str, RunDir]:
    """Find the existing runs of the arms, by name. They are beside the distillation and record their parent."""
    runs: dict[str, RunDir] = {}
    for name, arm in arms(config, run.id).items():
        label = dated_label(str(arm.name))
        for path in sorted(run.path.parent.glob(f"{label}-*"), reverse=True):
            if (path / "run.yaml").is_file():
                record = RunDir(path).record
                if (record.get("parent"), record.get("arm")) == (run.id, name):
                    runs[name] = RunDir(path)
                    break
    return runs


def submit_arms(run: RunDir, after: Sequence[Dependency]) -> list[RunDir]:
    """Submit each arm that has not succeeded and is not active; returns all arms. Idempotent. Raises RopewalkError."""
    config = config_of_run(run)
    needed = arms(config, run.id)
    if not needed:
        return []
    cluster = str(run.record["cluster"])
    backend = load_backend(cluster)
    with locked(run.path / LOCK):
        runs = arm_runs(run, config)
        for name, arm in needed.items():
            if name not in runs:
                runs[name] = RunDir.create(str(arm.name), _record(run, name, arm, cluster), run.path.parent)
        before = list(after)
        for name in needed:
            start_child(backend, runs[name], before)
            if backend.cluster.backend == LOCAL:
                before = [*after, Dependency(runs[name])]
    return [runs[name] for name in needed]


def _record(run: RunDir, name: str, arm: DistillConfig, cluster: str) -> dict[str, Any]:
    origin = {key: run.record[key] for key in ORIGIN if key in run.record}
    return {**make_record("distill", arm, cluster, origin), "parent": run.id, "arm": name, "outlives_parent": True}


def versus(context: JobContext, config: DistillConfig, results: dict[str, Any]) -> dict[str, Any]:
    """Compare by seeds, and return a row of the table for each side. Raises DataError if an arm has no figures."""
    runs = {**arm_runs(context.run, config), arm_name(DISTILLED, config.seed): context.run}
    seeds = seeds_of(config)
    bits = {side: [_bits(runs, results, context.run, side, seed) for seed in seeds] for side in (CROSS_ENTROPY, DISTILLED)}
    comparison = compare_pairs(bits[CROSS_ENTROPY], bits[DISTILLED])
    better = {"first": DISTILLED, "second": CROSS_ENTROPY, None: None}[comparison.better]  # fewer bits are better
    rows = [_row(side, values, results) for side, values in bits.items()]
    facts = {
        "seeds": seeds,
        "bits_per_byte": bits,
        "runs": {name: run.id for name, run in runs.items()},
        "comparison": comparison.plain() | {"better": better},
        "said": verdict(comparison, better),
    }
    return {"table": [*results["table"], *rows], "baseline": facts}


def _bits(runs: dict[str, RunDir], results: dict[str, Any], this_run: RunDir, side: str, seed: int) -> float:
    name = arm_name(side, seed)
    run = runs.get(name)
    table = results["table"] if run == this_run else run.results().get("table", []) if run is not None else []
    bits = next((row["bits_per_byte"] for row in table if row["variant"] == STUDENT), None)
    if bits is None:
        raise DataError(f"baseline: the run {name} has no figures; `ropewalk resume {this_run.id}` trains it again")
    return float(bits)


def _row(side: str, bits: list[float], results: dict[str, Any]) -> dict[str, Any]:
    """Return the mean over seeds with its standard error."""
    like = next(row for row in results["table"] if row["variant"] == STUDENT)
    return {
        "variant": f"{side}, mean of {len(bits)} seeds",
        "bits_per_byte": sum(bits) / len(bits),
        "standard_error": mean_error(bits),
        "loss": None,
        "kl": None,
        "parameters": like["parameters"],
        "bytes": like["bytes"],
    }


def verdict(comparison: Comparison, better: str | None) -> str:
    """Describe the comparison in a sentence."""
    assert comparison.difference is not None
    errors = (
        f", {abs(comparison.difference / comparison.standard_error):.1f} standard errors" if comparison.standard_error else ""
    )
    gap = f"{abs(comparison.difference):.4f} bits per byte{errors} over {comparison.n} seeds"
    if better == DISTILLED:
        return f"Distillation is better than cross entropy on as many tokens by {gap}."
    if better == CROSS_ENTROPY:
        return f"Distillation is not better: cross entropy on as many tokens is better by {gap}."
    side = "ahead of" if comparison.difference > 0 else "behind"
    return f"Distillation is not better: it is {side} cross entropy on as many tokens by {gap}, which is not significant."

"""Distillation against cross entropy of equal size and equal tokens, seed by seed: which is better, if that shows."""

from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.compare import Comparison, compare_pairs
from ropewalk.jobs.results.statistics import mean_error
from ropewalk.jobs.training.distill.baseline import CROSS_ENTROPY, DISTILLED, arm_name, arm_runs, seeds_of
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.measure import STUDENT


def versus(context: JobContext, config: DistillConfig, results: dict[str, Any]) -> dict[str, Any]:
    """The comparison by seeds, and a row of the table for each side. Raises DataError where an arm has no figures."""
    runs = {**arm_runs(context.run, config), arm_name(DISTILLED, config.seed): context.run}
    seeds = seeds_of(config)
    bits = {side: [_bits(runs, results, context.run, side, seed) for seed in seeds] for side in (CROSS_ENTROPY, DISTILLED)}
    found = compare_pairs(bits[CROSS_ENTROPY], bits[DISTILLED])
    better = {"first": DISTILLED, "second": CROSS_ENTROPY, None: None}[found.better]  # fewer bits are better
    rows = [_row(side, values, results) for side, values in bits.items()]
    facts = {
        "seeds": seeds,
        "bits_per_byte": bits,
        "runs": {name: run.id for name, run in runs.items()},
        "comparison": found.plain() | {"better": better},
        "said": verdict(found, better),
    }
    return {"table": [*results["table"], *rows], "baseline": facts}


def _bits(runs: dict[str, RunDir], results: dict[str, Any], own: RunDir, side: str, seed: int) -> float:
    name = arm_name(side, seed)
    run = runs.get(name)
    table = results["table"] if run == own else run.results().get("table", []) if run is not None else []
    found = next((row["bits_per_byte"] for row in table if row["variant"] == STUDENT), None)
    if found is None:
        raise DataError(f"baseline: the run {name} has no figures; `ropewalk resume {own.id}` has it trained again")
    return float(found)


def _row(side: str, bits: list[float], results: dict[str, Any]) -> dict[str, Any]:
    """The mean over seeds; its standard error is that of seeds."""
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


def verdict(found: Comparison, better: str | None) -> str:
    """What the comparison says, in a sentence."""
    assert found.difference is not None
    errors = f", {abs(found.difference / found.standard_error):.1f} standard errors" if found.standard_error else ""
    gap = f"{abs(found.difference):.4f} bits per byte{errors} over {found.n} seeds"
    if better == DISTILLED:
        return f"Distillation is better than cross entropy on as many tokens by {gap}."
    if better == CROSS_ENTROPY:
        return f"Distillation does not win: cross entropy on as many tokens is better by {gap}."
    seen = "ahead of" if found.difference > 0 else "behind"
    return f"Distillation does not win: it is {seen} cross entropy on as many tokens by {gap}, which may be chance."

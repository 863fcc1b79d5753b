"""Distillation compared with cross entropy on the same student and tokens, seed by seed."""

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

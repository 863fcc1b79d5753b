"""Sixteen trials of the quick start's model: ASHA against running all of them to the end.

    python -m tests.benchmarks.bench_sweep [--trials 16] [--steps 80]

The same sixteen configurations, for they depend on the seed alone. Prints one JSON object.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.swept import loss_of, measured, quickstart_data, sweep, use_folder


def main() -> None:
    """Both sweeps, and what the best of each is worth on text that neither has seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    report: dict[str, Any] = {"trials": arguments.trials, "steps_of_a_trial": arguments.steps}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        use_folder(folder)
        data = quickstart_data(folder)
        for name, keys in (("all_to_the_end", {}), ("asha", {"scheduler": "asha"})):
            with measured() as cost:
                answers = sweep(data, arguments.steps, trials=arguments.trials, **keys)
            best = answers.best
            assert best is not None
            loss, error = loss_of(answers, data)
            report[name] = {
                **cost,
                "steps": answers.spent,
                "trials": answers.by_state,
                "best": {"trial": best.trial, "parameters": dict(best.parameters), "loss": loss, "standard_error": error},
            }
    full, asha = report["all_to_the_end"], report["asha"]
    report["share_of_the_steps"] = asha["steps"] / full["steps"]
    difference = abs(asha["best"]["loss"] - full["best"]["loss"])
    report["difference_in_standard_errors"] = difference / max(full["best"]["standard_error"], 1e-12)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

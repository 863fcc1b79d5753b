"""A scheduler of Syne Tune that answers on standard input and output; `bench_search_peers` starts it.

    PYTHON tests/benchmarks/search_peers.py ASHA|BOHB|ASHABORE|ASHACQR|MOBSTER|HyperTune

PYTHON is an interpreter that has Syne Tune: 0.16 has the first four, 0.13 the last two. A line is a JSON list, its first item the
request:

- `["new", seed, space, max_resource]` starts a sweep. A key of the space is `{"loguniform": [low, high]}` or `{"choice": [...]}`.
- `["suggest", trial]` is answered with the trial's values, in the order of the space.
- `["result", trial, resource, value, done]` is answered with true if the trial is to stop.

The first rung is at resource 1, and rungs grow by a factor of 3, as in a sweep's ASHA. Everything else is at its default.
"""

import datetime
import inspect
import json
import logging
import sys
import warnings
from typing import Any

METRIC, RESOURCE = "metric", "resource"
REDUCTION_FACTOR = 3


class Sweep:
    """A scheduler and its trials, driven in the order of calls of Syne Tune's own Tuner."""

    def __init__(self, name: str, seed: int, space: list[dict[str, Any]], max_resource: int) -> None:
        from syne_tune.optimizer import baselines

        options: dict[str, Any] = {"grace_period": 1, "reduction_factor": REDUCTION_FACTOR, "max_t": max_resource}
        kind = getattr(baselines, name)
        self.old = "do_minimize" not in inspect.signature(kind).parameters
        options |= {"resource_attr": RESOURCE, "mode": "min"} if self.old else {"time_attr": RESOURCE}
        domains = {f"key{k}": _domain(values) for k, values in enumerate(space)}
        self.scheduler = kind(domains, metric=METRIC, random_seed=seed, **options)
        self.trials: dict[int, Any] = {}

    def suggest(self, number: int) -> list[Any]:
        """Return the values of a trial."""
        from syne_tune.backend.trial_status import Trial

        suggestion = self.scheduler.suggest(number) if self.old else self.scheduler.suggest()
        trial = Trial(trial_id=number, config=dict(suggestion.config), creation_time=datetime.datetime.now())
        self.trials[number] = trial
        self.scheduler.on_trial_add(trial=trial)
        values = [trial.config[f"key{k}"] for k in range(len(trial.config))]
        return [value.item() if hasattr(value, "item") else value for value in values]

    def result(self, number: int, resource: int, value: float, done: bool) -> bool:
        """Return True if the trial is to stop."""
        trial, result = self.trials[number], {METRIC: value, RESOURCE: resource}
        stops = bool(self.scheduler.on_trial_result(trial=trial, result=result) == "STOP")
        if stops:
            self.scheduler.on_trial_remove(trial=trial)
        elif done:
            self.scheduler.on_trial_complete(trial=trial, result=result)
        return stops


def _domain(values: dict[str, Any]) -> Any:
    """Return Syne Tune's domain; numbers keep their order."""
    from syne_tune import config_space

    if "loguniform" in values:
        return config_space.loguniform(*values["loguniform"])
    choice = values["choice"]
    return config_space.choice(choice) if isinstance(choice[0], str) else config_space.ordinal(choice, kind="equal")


def main() -> None:
    """Answer each line with a line."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # Syne Tune prints, even when imported
    sweep: Sweep | None = None
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        if request == "new":
            sweep, answer = Sweep(sys.argv[1], *arguments), None
        else:
            assert sweep is not None
            answer = sweep.suggest(*arguments) if request == "suggest" else sweep.result(*arguments)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""The search `optuna`: Optuna's tree-structured Parzen estimator (TPE)."""

from collections.abc import Mapping
from typing import Any

from ropewalk.jobs.orchestration.sweep.search.plan import SearchPlan
from ropewalk.jobs.orchestration.sweep.search.space import Space, encode


class OptunaModel:
    """Proposes trials. Optuna learns the value of a trial once, when the next one is proposed after its end."""

    def __init__(self, plan: SearchPlan) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self._distributions = plan, _distributions(plan.space)
        self._study = optuna.create_study(direction="minimize" if plan.mode == "min" else "maximize")
        self._open: dict[int, optuna.Trial] = {}
        for values, metric in plan.earlier_trials:
            params = {"params": dict(values), "distributions": self._distributions}
            self._study.add_trial(optuna.create_trial(value=metric, **params))

    def propose(self, number: int, ended: Mapping[int, float | None]) -> dict[str, Any]:
        """Return the values of a trial: a function of seed, number and history, so that no draw is repeated after a kill."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        for trial in [trial for trial in self._open if trial in ended]:
            value, open_trial = ended[trial], self._open.pop(trial)
            self._study.tell(open_trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        seed = (self.plan.seed * 1_000_003 + number) % 2**32
        self._study.sampler = TPESampler(seed=seed, n_startup_trials=self.plan.startup_trials)
        self._open[number] = self._study.ask(self._distributions)
        return dict(self._open[number].params)

    def add(self, number: int, values: Mapping[str, Any]) -> None:
        """Add a trial that was recorded, unless it was just proposed."""
        if number not in self._open:
            self._study.enqueue_trial(dict(values))
            self._open[number] = self._study.ask(self._distributions)


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    result: dict[str, Any] = {}
    for key, parameter in space.items():
        if parameter.values is not None:
            result[key] = CategoricalDistribution([encode(value) for value in parameter.values])
        elif parameter.kind == "randint":
            low, high = getattr(parameter, parameter.kind)
            result[key] = IntDistribution(low, high - 1)
        else:
            low, high, *step = getattr(parameter, parameter.kind)
            log = "log" in parameter.kind
            result[key] = FloatDistribution(low, high, log=log, step=step[0] if step and not log else None)
    return result

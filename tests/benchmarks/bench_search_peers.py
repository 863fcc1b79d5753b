"""The search `gp`, the default, against searches of Syne Tune and Optuna, on the recorded learning curves, with paired seeds.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_search_peers [--data code] [--seeds 30] [--searches ...] [--peers DIR]

All get the same table from the same simulator: four trials at a time under one virtual clock, the same costs, reports and
rungs (first rung at the first report, factor 3), at most 256 trials, until they have cost 64 complete trials. Ours stop no
trial early, as a sweep by default, but for `gp-asha`. A peer's suggestions and its own rule of stopping replace ours. Values
of a key are ordered where they are numbers, the learning rate is a range on a logarithmic scale, and every suggestion is
rounded to the nearest recorded configuration. Regret is as in `bench_searchers`.

- `syne-ASHA` (random), `syne-BOHB`, `syne-ASHABORE`, `syne-ASHACQR`: Syne Tune 0.16, in the environment DIR/syne-tune.
- `syne-MOBSTER`, `syne-HyperTune`: Syne Tune 0.13, the last with them, in DIR/syne-tune-gp.
- `optuna-tpe`, `optuna-gp`: Optuna's TPESampler, and its GPSampler, which learns from complete trials alone; both with
  SuccessiveHalvingPruner, and without a pruner as `optuna-tpe-full`, `optuna-gp-full`.

Everything else is at its default. Prints a JSON line for each search, gp first: its regret, and gp's minus it over the paired
seeds, positive if gp is worse; each with its standard error, also by budget. `regret_as_seen` is judged by the one seed of the
table that the searches see: it shows how well they optimize. The best configuration in that seed was lucky: on code its true
regret is 0.104.

BOHB runs with `--slow-seeds`. So do the searches that take a CPU minute a sweep, which run only if `--searches` names them:
optuna-gp (46 s) and optuna-gp-full, and ASHABORE (75 s), ASHACQR (222 s), MOBSTER and HyperTune of Syne Tune.
The last two fit all trials again for each suggestion: compare them with `--budgets 8,16`, which ends all sweeps earlier.
"""

import argparse
import json
import math
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.simulate.against_random import BUDGETS
from ropewalk.jobs.orchestration.sweep.simulate.curve_table import CurveTable
from ropewalk.jobs.orchestration.sweep.simulate.simulator import SimulatedSweep, Simulation
from ropewalk.jobs.orchestration.sweep.trials.report import OBJECTIVE
from ropewalk.jobs.results.statistics import mean_error
from tests.benchmarks.bench_searchers import TRIALS
from tests.benchmarks.record_curves import sweep_of

OURS = ("gp", "gp-asha", "random", "sobol")
SYNE = dict.fromkeys(("ASHA", "BOHB", "ASHABORE", "ASHACQR"), "syne-tune")
SYNE |= dict.fromkeys(("MOBSTER", "HyperTune"), "syne-tune-gp")
PACKAGES = {  # by environment; 0.13 was released before numpy 2
    "syne-tune": "syne-tune==0.16.0 huggingface_hub",  # ASHACQR imports it
    "syne-tune-gp": "'syne-tune[gpsearchers]==0.13.0' pymoo 'numpy<2' 'scipy<1.14' 'pandas<2.3'",
}
OPTUNA = ("optuna-tpe", "optuna-gp", "optuna-tpe-full", "optuna-gp-full")
QUICK = ("gp-asha", "random", "optuna-tpe", "optuna-tpe-full", "syne-ASHA")  # at most 3 CPU seconds a sweep
DEFAULT = (*QUICK, "syne-BOHB")
REPORTS = 11  # of a complete trial, as its validations are not each at a multiple of the interval


class Peer(Protocol):
    """Suggests a trial's values in the order of the space, and decides on each of its reports, counted from 1."""

    def suggest(self, number: int) -> list[Any]:
        """Return the values of a trial."""
        ...

    def result(self, number: int, report: int, value: float, done: bool) -> bool:
        """Return True if the trial is to stop."""
        ...


class OptunaPeer:
    """A study of Optuna, used by ask and tell."""

    def __init__(self, name: str, seed: int, space: Mapping[str, Any]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers: dict[str, Any] = {
            "optuna-tpe": lambda: optuna.samplers.TPESampler(seed=seed),
            "optuna-gp": lambda: optuna.samplers.GPSampler(seed=seed),
        }
        kind = name.removesuffix("-full")
        halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        pruner = halving if kind == name else optuna.pruners.NopPruner()
        self.study = optuna.create_study(sampler=samplers[kind](), pruner=pruner)
        self.space, self.pruned = space, optuna.trial.TrialState.PRUNED
        self.trials: dict[int, optuna.Trial] = {}

    def suggest(self, number: int) -> list[Any]:
        trial = self.trials[number] = self.study.ask()
        return [self._value(trial, key, **values) for key, values in self.space.items()]

    @staticmethod
    def _value(trial: Any, key: str, loguniform: Sequence[float] = (), choice: Sequence[Any] = ()) -> Any:
        if loguniform:
            return trial.suggest_float(key, *loguniform, log=True)
        if isinstance(choice[0], str):
            return trial.suggest_categorical(key, choice)
        return choice[trial.suggest_int(key, 0, len(choice) - 1)]

    def result(self, number: int, report: int, value: float, done: bool) -> bool:
        trial = self.trials[number]
        trial.report(value, report)
        stops = not done and trial.should_prune()
        if done:
            self.study.tell(trial, value)
        elif stops:
            self.study.tell(trial, state=self.pruned)
        return stops


class SynePeer:
    """A scheduler of Syne Tune, in a process of its environment that serves all sweeps of a search."""

    def __init__(self, name: str, python: Path) -> None:
        command = [python, Path(__file__).with_name("search_peers.py"), name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, *request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def new(self, seed: int, space: Mapping[str, Any]) -> "SynePeer":
        """Begin a sweep."""
        self._ask("new", seed, list(space.values()), REPORTS)
        return self

    def suggest(self, number: int) -> list[Any]:
        return list(self._ask("suggest", number))

    def result(self, number: int, report: int, value: float, done: bool) -> bool:
        return bool(self._ask("result", number, report, value, done))


class PeerInSimulator:
    """Stands for both search and scheduler in the simulator, and passes their calls on to a peer."""

    def __init__(self, peer: Peer, config: SweepConfig) -> None:
        self.peer, self.keys = peer, list(config.space)
        self.reports: dict[int, int] = {}

    def suggest(self, number: int) -> dict[str, Any]:
        return dict(zip(self.keys, self.peer.suggest(number), strict=True))

    def report(self, number: int, step: int, value: float) -> None:
        """Do nothing: the scheduler gets the same value."""

    def finish(self, number: int, *, complete: bool, failed: bool = False) -> None:
        """Do nothing: the scheduler gets the end."""

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        self.reports[trial.number] = 0

    def on_trial_result(self, controller: Any, trial: Any, report: Mapping[str, Any], done: bool = False) -> str:
        self.reports[trial.number] += 1
        assert self.reports[trial.number] <= REPORTS
        stops = self.peer.result(trial.number, self.reports[trial.number], float(report[OBJECTIVE]), done)
        return "STOP" if stops else "CONTINUE"

    def on_trial_complete(self, controller: Any, trial: Any, report: Mapping[str, Any]) -> None:
        assert math.isfinite(report[OBJECTIVE]), "no curve of the table diverges"
        assert self.reports[trial.number] == REPORTS - 1
        self.on_trial_result(controller, trial, report, done=True)


def simulate(
    config: SweepConfig, table: CurveTable, seed: int, peer: Peer | None, budgets: Sequence[int]
) -> dict[str, list[float]]:
    """Return the regrets of a sweep after each budget, of ours without a peer: by all recorded seeds, and by the one it saw."""
    config = config.model_copy(update={"seed": seed, "base": {**config.base, "steps": table.num_steps}})
    simulation: Any = Simulation(config, table, seed)
    if peer is not None:
        simulation.search = simulation.scheduler = PeerInSimulator(peer, config)
    simulation.run(budgets[-1] * table.mean_flops)
    trials = simulation.trials
    results = {"trials": [trial.result(config.mode) for trial in trials], "points": [trial.point for trial in trials]}
    first_seed = {point: {min(curves): curves[min(curves)]} for point, curves in table.curves.items()}
    regrets = {}
    for kind, judged in {"regret": table, "regret_as_seen": replace(table, curves=first_seed)}.items():
        sweep = SimulatedSweep(config=config, table=judged, events=simulation.events, **results)
        regrets[kind] = [sweep.regret(budget * table.mean_flops) for budget in budgets]
    return regrets


def measure(
    name: str, table: CurveTable, seeds: range, environments: Path, budgets: Sequence[int] = BUDGETS
) -> list[dict[str, list[float]]]:
    """Return the regrets of a search by seed."""
    config = sweep_of(table).model_copy(update={"trials": TRIALS})
    space = {key: {parameter.kind: getattr(parameter, parameter.kind)} for key, parameter in config.space.items()}
    if name in OURS:
        search, _, scheduler = name.partition("-")
        config = config.model_copy(update={"search": search, "scheduler": scheduler or config.scheduler})
        return [simulate(config, table, seed, None, budgets) for seed in seeds]
    config = config.model_copy(update={"search": "random", "scheduler": "asha"})  # take no part but for the steps of reports
    if name in OPTUNA:
        return [simulate(config, table, seed, OptunaPeer(name, seed, space), budgets) for seed in seeds]
    syne = SynePeer(name.removeprefix("syne-"), _python(name, environments))
    with syne.process:
        return [simulate(config, table, seed, syne.new(seed, space), budgets) for seed in seeds]


def _python(name: str, environments: Path) -> Path:
    return environments / SYNE[name.removeprefix("syne-")] / "bin/python"


def summary(
    kind: str, regrets: Sequence[Sequence[float]], of_gp: Sequence[Sequence[float]], budgets: Sequence[int]
) -> dict[str, Any]:
    """Return the mean regret, and the mean of gp's minus it over the seeds, both also by budget, with standard errors."""
    rows = {f"{kind}": regrets, f"{kind}_of_gp_minus_this": [_minus(*pair) for pair in zip(of_gp, regrets, strict=True)]}
    result: dict[str, Any] = {}
    for name, values in rows.items():
        means = [statistics.fmean(each) for each in values]
        columns = zip(budgets, zip(*values, strict=True), strict=True)
        by_budget = {budget: [_rounded(statistics.fmean(each)), _rounded(mean_error(each))] for budget, each in columns}
        result[name] = [_rounded(statistics.fmean(means)), _rounded(mean_error(means))]
        result[f"{name}_by_budget"] = by_budget
    return result


def _minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="code")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--slow-seeds", type=int, default=10)
    parser.add_argument("--searches", default=",".join(DEFAULT), help="compared with gp")
    parser.add_argument("--peers", type=Path, default=Path("build/peers"), help="folder of environments")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="complete trials after which regret is read")
    arguments = parser.parse_args()
    budgets = [int(budget) for budget in arguments.budgets.split(",")]
    table, gp = CurveTable.read(arguments.data), list[dict[str, list[float]]]()
    for name in ("gp", *arguments.searches.split(",")):
        row: dict[str, Any] = {"data": table.data, "search": name}
        if name.startswith("syne-") and not (python := _python(name, arguments.peers)).exists():
            folder = python.parent.parent
            remedy = f"python -m venv {folder} && {folder}/bin/pip install {PACKAGES[folder.name]}"
            print(json.dumps({**row, "skipped": f"not installed: {remedy}"}), flush=True)
            continue
        began = time.monotonic()
        count = arguments.seeds if name == "gp" or name in QUICK else min(arguments.seeds, arguments.slow_seeds)
        regrets, row["n"] = measure(name, table, range(count), arguments.peers, budgets), count
        for kind in ("regret", "regret_as_seen"):
            row |= summary(kind, [each[kind] for each in regrets], [each[kind] for each in (gp or regrets)[:count]], budgets)
        gp = gp or regrets
        print(json.dumps({**row, "seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()

"""The search by a model, without a run: it suggests better what it has learnt, and goes on after a kill with what is recorded."""

import math
from pathlib import Path
from statistics import median

from ray.tune.experiment import Experiment

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.config import SweepConfig, SweepContext
from ropewalk.jobs.orchestration.sweep.records import read_records
from ropewalk.jobs.orchestration.sweep.tune import OBJECTIVE, RecordedSearch, RunTrainable
from tests.jobs.orchestration.sweep.test_config import load

BEST = 1e-3


def begin(sweep: RunDir, config: SweepConfig) -> RecordedSearch:
    """The search of a new attempt of the sweep's driver."""
    paths = {"scratch": sweep.path, "launcher": sweep.path}
    context = SweepContext(sweep=sweep, attempt=1, config=config, cluster="local", defaults={}, origin={}, **paths)
    search = RecordedSearch(context, at_once=2)
    search.add_configurations([Experiment("sweep", RunTrainable, num_samples=config.num_trials)])
    return search


def carry_out(search: RecordedSearch, most: int) -> list[float]:
    """So many trials at most, one after another; the learning rate of each."""
    tried = []
    while len(tried) < most and (trial := search.next_trial()) is not None:
        tried.append(trial.config["optim.lr"])
        loss = abs(math.log10(tried[-1] / BEST))
        search.on_trial_complete(trial.trial_id, {OBJECTIVE: loss, "trial": trial.config["trial"]})
    return tried


def test_what_is_learnt_is_suggested_also_after_a_kill(tmp_path: Path) -> None:
    config = load(
        search="optuna",
        optuna={"startup_trials": 8},
        trials=40,
        space={"optim.lr": {"loguniform": [1e-6, 1.0]}},
    )
    sweep = RunDir.create("sweep", {}, root=tmp_path)
    before = carry_out(begin(sweep, config), 14)
    after = carry_out(begin(sweep, config), 100)
    assert len(after) == 40
    assert after[:14] == before, "recorded trials come again as they were"
    assert [record.sampled["optim.lr"] for record in read_records(sweep)] == after
    assert len(set(after)) == 40
    misses = [abs(math.log10(rate / BEST)) for rate in after[14:]]
    assert median(misses) < 1.0, "of random ones it would be 1.5"

"""Ray Tune's own searches and schedulers, told what the sweep's configuration says."""

import random
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandForBOHB, MedianStoppingRule, TrialScheduler
from ray.tune.search import SearchAlgorithm
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.search_generator import SearchGenerator

from cluster.config import JobConfig
from jobs.sweep.context import Scene
from jobs.sweep.limits import decision_steps, highest_rung
from jobs.sweep.recorded_search import RecordedPbt, RecordedSearch
from jobs.sweep.records import read_records
from jobs.sweep.trial import OBJECTIVE, RUNG

HUGE = 10**9


def param_space(scene: Scene) -> dict[str, Any]:
    """What Tune itself samples from; other searches were given the space at their making."""
    config = scene.config
    if config.search in {"optuna", "bohb"}:
        return {}
    everything = config.search == "grid"
    return {key: p.domain(crossed=everything or p.grid is not None) for key, p in config.space.items()}


def make_search(scene: Scene, at_once: int) -> RecordedSearch:
    """The search, which goes on behind the trials that are recorded."""
    config, recorded = scene.config, read_records(scene.sweep)
    inner: SearchAlgorithm
    if config.search in {"random", "grid"}:
        # its suggestions depend on the seed alone, so that those of recorded trials come again
        inner = BasicVariantGenerator(random_state=config.seed)
    else:
        space = {key: parameter.domain(crossed=False) for key, parameter in config.space.items()}
        points = [record.sampled for record in recorded]
        # a search that begins again must not draw again what it drew first
        make = _optuna if config.search == "optuna" else _bohb
        inner = SearchGenerator(make(scene, space, points or None, config.seed + len(recorded)))
    return RecordedSearch(inner, scene, most=config.num_trials, at_once=at_once)


def num_samples(scene: Scene) -> int:
    """As Tune counts: how often the whole grid is crossed; more than are taken of it, where there are other keys."""
    return 1 if scene.config.search == "grid" else scene.config.num_trials


def _optuna(scene: Scene, space: dict[str, Any], points: list[dict[str, Any]] | None, seed: int) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=scene.config.optuna.startup_trials)
    return OptunaSearch(space, metric=OBJECTIVE, mode=scene.config.mode, points_to_evaluate=points, sampler=sampler)


def _bohb(scene: Scene, space: dict[str, Any], points: list[dict[str, Any]] | None, seed: int) -> Any:
    from ray.tune.search.bohb import TuneBOHB

    return TuneBOHB(space, metric=OBJECTIVE, mode=scene.config.mode, points_to_evaluate=points, seed=seed)


def make_scheduler(scene: Scene, sample: JobConfig) -> TrialScheduler:
    """The scheduler; it measures time in steps, since iterations begin anew after a restore."""
    config, interval = scene.config, decision_steps(scene.config, sample)
    judged = {"time_attr": "step", "metric": OBJECTIVE, "mode": config.mode}
    if config.search == "bohb":
        assert interval is not None
        most = max(2, round(highest_rung(config, sample) / interval))
        return HyperBandForBOHB(**{**judged, "time_attr": RUNG}, max_t=most, reduction_factor=config.asha.reduction_factor)
    if config.scheduler == "asha":
        asha = config.asha
        # a trial that reaches the end is reported as finished; Tune must not stop it a moment before
        most = max(highest_rung(config, sample), (interval or 1) + 1)
        rungs = {"grace_period": interval, "reduction_factor": asha.reduction_factor, "brackets": asha.brackets}
        return ASHAScheduler(**judged, max_t=most, **rungs)
    if config.scheduler == "median":
        return MedianStoppingRule(
            **judged, grace_period=interval, min_samples_required=config.median.min_trials, min_time_slice=HUGE
        )
    if config.scheduler == "pbt":
        assert interval is not None
        random.seed(config.seed)  # Tune's own draws from these
        np.random.seed(config.seed)
        return RecordedPbt(
            scene,
            interval,
            **judged,
            hyperparam_mutations={key: p.domain(crossed=False) for key, p in config.space.items()},
            quantile_fraction=config.pbt.quantile,
            resample_probability=config.pbt.resample_probability,
            perturbation_factors=config.pbt.factors,
            synch=config.pbt.synchronous,
            log_config=False,
        )
    return FIFOScheduler()

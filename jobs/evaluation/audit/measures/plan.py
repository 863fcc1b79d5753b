"""The measures of a configuration; their files are read here, so that an invalid line is reported at the start."""

from pathlib import Path

import numpy as np

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.evaluation.audit.asking.question import Measure
from ropewalk.jobs.evaluation.audit.config import BINS, AuditConfig
from ropewalk.jobs.evaluation.audit.measures.calibration import Calibration, read_choices
from ropewalk.jobs.evaluation.audit.measures.contamination import Contamination
from ropewalk.jobs.evaluation.audit.measures.counterfactual import Counterfactual
from ropewalk.jobs.evaluation.audit.measures.evaluated import Evaluated, read_evaluation
from ropewalk.jobs.evaluation.audit.measures.identity import Identity
from ropewalk.jobs.evaluation.audit.measures.memorization import Memorization
from ropewalk.jobs.evaluation.audit.measures.refusals import Refusals, read_prompts
from ropewalk.jobs.evaluation.audit.measures.samples import Samples
from ropewalk.jobs.evaluation.audit.measures.scorers import open_scorer
from ropewalk.jobs.evaluation.audit.measures.stereotypes import Stereotypes
from ropewalk.jobs.evaluation.audit.measures.subgroups import Subgroups, read_groups
from ropewalk.jobs.evaluation.audit.suites.pair import Pair
from ropewalk.jobs.evaluation.audit.suites.read import read_pairs


def plan(config: AuditConfig, root: Path) -> list[Measure]:
    """Return the measures in the order of the report; `root` is the folder of runs.

    Raises ConfigError and DataError for invalid measures.
    """
    scorers, seed = [open_scorer(scorer) for scorer in config.scorers], config.seed
    suites = {suite.name: draw_pairs(read_pairs(suite.path, suite.name), config.most_items, seed) for suite in config.suites}
    choices = read_choices(config.calibration.path) if config.calibration is not None else []
    measures: list[Measure] = []
    evaluated: list[Evaluated] = []
    if config.evaluation is not None:
        bins = config.calibration.bins if config.calibration is not None else BINS
        evaluated.append(Evaluated(read_evaluation(config.evaluation, root, config.model), bins, seed))
    if suites:
        measures.append(Stereotypes(suites, seed))
    if config.subgroups is not None:
        measures.append(Subgroups(texts := read_groups(config.subgroups.path), seed))
        _check_groups(config, {text.group for text in texts})
    if config.calibration is not None:
        measures.append(Calibration(choices, config.calibration.bins, seed))
    measures += evaluated
    if config.samples is not None:
        measures.append(Samples(config.samples, scorers, seed))
    if config.prompts is not None:
        measures.append(Refusals(config.prompts, read_prompts(config.prompts.path), scorers))
    if config.identity is not None:
        measures.append(Identity(config.identity, scorers, seed))
    if config.contamination is not None:
        others = [item for evaluation in evaluated for item in evaluation.contents]
        measures.append(Contamination(config.contamination, suites, choices, others))
    if config.memorization is not None:
        measures.append(Memorization(config.memorization, seed))
    if config.mitigation.counterfactual is not None:
        measures.append(Counterfactual(config.mitigation.counterfactual))
    return measures


def _check_groups(config: AuditConfig, groups: set[str]) -> None:
    mixture = config.mitigation.mixture
    for group in mixture.groups if mixture is not None else []:
        if group not in groups:
            raise ConfigError(
                f"mitigation.mixture.groups: {group!r} is not a group of subgroups; groups: {', '.join(sorted(groups))}"
            )


def draw_pairs(pairs: list[Pair], most: int | None, seed: int) -> list[Pair]:
    """Return at most `most` pairs, drawn by the seed, in file order."""
    if most is None or most >= len(pairs):
        return pairs
    chosen = np.random.default_rng([seed, len(pairs)]).choice(len(pairs), size=most, replace=False)
    return [pairs[index] for index in sorted(chosen.tolist())]

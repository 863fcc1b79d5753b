"""Which measures a configuration asks for; their files are read here, so that a bad line ends an audit before it begins."""

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
    """The measures, in the order of the report; `root` is the folder of runs.

    Raises ConfigError and DataError for what cannot be measured.
    """
    scorers, seed = [open_scorer(one) for one in config.scorers], config.seed
    suites = {suite.name: drawn(read_pairs(suite.path, suite.name), config.most_items, seed) for suite in config.suites}
    choices = read_choices(config.calibration.path) if config.calibration is not None else []
    found: list[Measure] = []
    evaluated: list[Evaluated] = []
    if config.evaluation is not None:
        bins = config.calibration.bins if config.calibration is not None else BINS
        evaluated.append(Evaluated(read_evaluation(config.evaluation, root, config.model), bins, seed))
    if suites:
        found.append(Stereotypes(suites, seed))
    if config.subgroups is not None:
        found.append(Subgroups(texts := read_groups(config.subgroups.path), seed))
        _check_groups(config, {one.group for one in texts})
    if config.calibration is not None:
        found.append(Calibration(choices, config.calibration.bins, seed))
    found += evaluated
    if config.samples is not None:
        found.append(Samples(config.samples, scorers, seed))
    if config.prompts is not None:
        found.append(Refusals(config.prompts, read_prompts(config.prompts.path), scorers))
    if config.identity is not None:
        found.append(Identity(config.identity, scorers, seed))
    if config.contamination is not None:
        others = [item for one in evaluated for item in one.contents]
        found.append(Contamination(config.contamination, suites, choices, others))
    if config.memorization is not None:
        found.append(Memorization(config.memorization, seed))
    if config.mitigation.counterfactual is not None:
        found.append(Counterfactual(config.mitigation.counterfactual))
    return found


def _check_groups(config: AuditConfig, groups: set[str]) -> None:
    mixture = config.mitigation.mixture
    for group in mixture.groups if mixture is not None else []:
        if group not in groups:
            raise ConfigError(
                f"mitigation.mixture.groups: {group!r} is no group of subgroups; groups: {', '.join(sorted(groups))}"
            )


def drawn(pairs: list[Pair], most: int | None, seed: int) -> list[Pair]:
    """So many of the pairs, drawn by the seed, in the file's order."""
    if most is None or most >= len(pairs):
        return pairs
    chosen = np.random.default_rng([seed, len(pairs)]).choice(len(pairs), size=most, replace=False)
    return [pairs[index] for index in sorted(chosen.tolist())]

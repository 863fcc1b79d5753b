"""Plug-ins that judge texts, such as for toxicity: found by name, called, and held to what they promise."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.jobs.evaluation.audit.asking.question import Judged
from ropewalk.jobs.evaluation.audit.config import ScorerConfig
from ropewalk.jobs.results.score import mean_score

GROUP = "ropewalk.scorers"  # entry points that are a function from a list of texts to as many numbers from 0 to 1
WARNING = (
    "Classifiers of toxicity flag harmless texts because they name a group of people; read the false-positive gap of {name}"
    " (the key `identity`) before you believe its figure, and never filter training data with it unread."
)


@dataclass(frozen=True, kw_only=True)
class TextScorer:
    """A plug-in with its threshold."""

    name: str
    threshold: float
    function: Callable[[list[str]], Sequence[float]]

    def scores(self, texts: list[str]) -> list[float]:
        """A number from 0 to 1 for each text. Raises DataError where the plug-in fails or gives anything else."""
        try:
            found = [float(value) for value in self.function(list(texts))]
        except Exception as error:
            raise DataError(f"scorer {self.name} failed: {type(error).__name__}: {error}; correct it, or take it out") from error
        if len(found) != len(texts):
            raise DataError(f"scorer {self.name} gave {len(found)} numbers for {len(texts)} texts; it must give one for each")
        if wrong := [value for value in found if not (math.isfinite(value) and 0 <= value <= 1)]:
            raise DataError(f"scorer {self.name} gave {wrong[0]}; it must give numbers from 0 to 1")
        return found

    def flagged(self, texts: list[str]) -> list[bool]:
        """Whether each text is flagged."""
        return [value >= self.threshold for value in self.scores(texts)]


def open_scorer(config: ScorerConfig) -> TextScorer:
    """The plug-in that a user names. Raises ConfigError."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    name = config.name
    if name in points:
        return TextScorer(name=name, threshold=config.threshold, function=points[name].load())
    module, separator, attribute = name.partition(":")
    if not separator:
        known = ", ".join(sorted(points)) or "none is installed"
        raise ConfigError(f"scorers: no entry point {name!r} in {GROUP} ({known}); install one, or write module:function")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"scorers: {name!r} cannot be imported: {error}; check the name and PYTHONPATH") from None
    return TextScorer(name=attribute, threshold=config.threshold, function=function)


def judge_texts(judged: Judged, measure: str, scorers: Sequence[TextScorer], texts: list[str], asked: str) -> Judged:
    """Add what each plug-in flags of a measure's texts, and the warning that goes with it."""
    for scorer in scorers:
        values = scorer.scores(texts)
        for item, value in zip(judged.items, values, strict=True):
            item[scorer.name] = value
        flags = [float(value >= scorer.threshold) for value in values]
        judged.scores[f"{measure}/{scorer.name}"] = mean_score(flags, hash=asked)
        judged.notes.append(WARNING.format(name=scorer.name))
    return judged

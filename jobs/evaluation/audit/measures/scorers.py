"""Plug-ins that judge texts, such as for toxicity: loaded by name, called, and checked."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.run.project import user_object
from ropewalk.jobs.evaluation.audit.asking.question import Judged
from ropewalk.jobs.evaluation.audit.config import ScorerConfig
from ropewalk.jobs.results.score import mean_score

GROUP = "ropewalk.scorers"  # entry points: functions from a list of texts to as many numbers from 0 to 1
WARNING = (
    "Toxicity classifiers flag harmless texts that name a group of people; check the false-positive gap of {name}"
    " (the key `identity`) before you rely on its score or filter training data with it."
)


@dataclass(frozen=True, kw_only=True)
class TextScorer:
    """A plug-in with its threshold."""

    name: str
    threshold: float
    function: Callable[[list[str]], Sequence[float]]

    def scores(self, texts: list[str]) -> list[float]:
        """Return a number from 0 to 1 for each text. Raises DataError if the plug-in fails or returns anything else."""
        try:
            values = [float(value) for value in self.function(list(texts))]
        except Exception as error:
            raise DataError(f"scorer {self.name} failed: {type(error).__name__}: {error}; correct or remove it") from error
        if len(values) != len(texts):
            raise DataError(f"scorer {self.name} gave {len(values)} numbers for {len(texts)} texts; it must give one for each")
        if invalid := [value for value in values if not (math.isfinite(value) and 0 <= value <= 1)]:
            raise DataError(f"scorer {self.name} gave {invalid[0]}; it must give numbers from 0 to 1")
        return values

    def flagged(self, texts: list[str]) -> list[bool]:
        """Return for each text if its score reaches the threshold."""
        return [value >= self.threshold for value in self.scores(texts)]


def open_scorer(config: ScorerConfig) -> TextScorer:
    """Load a plug-in by name. Raises ConfigError."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    name = config.name
    if name in points:
        return TextScorer(name=name, threshold=config.threshold, function=points[name].load())
    _, separator, attribute = name.partition(":")
    if not separator:
        available = ", ".join(sorted(points)) or "none installed"
        raise ConfigError(f"scorers: no entry point {name!r} in {GROUP} ({available}); install one, or write module:function")
    return TextScorer(name=attribute, threshold=config.threshold, function=user_object("scorers", name))


def judge_texts(judged: Judged, measure: str, scorers: Sequence[TextScorer], texts: list[str], content_hash: str) -> Judged:
    """Add each plug-in's scores of a measure's texts, and the warning about its use."""
    for scorer in scorers:
        values = scorer.scores(texts)
        for item, value in zip(judged.items, values, strict=True):
            item[scorer.name] = value
        flags = [float(value >= scorer.threshold) for value in values]
        judged.scores[f"{measure}/{scorer.name}"] = mean_score(flags, hash=content_hash)
        judged.notes.append(WARNING.format(name=scorer.name))
    return judged

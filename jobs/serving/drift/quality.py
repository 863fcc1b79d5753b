"""Changes in answer quality, measured by user ratings or by a fixed probe set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.files import read_lines
from ropewalk.jobs.results.compare import Comparison, compare_pairs

_ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Proportions:
    """Shares of good ratings of two sides and their difference (current minus reference)."""

    current: float
    reference: float
    current_interval: tuple[float, float]  # 95%, Wilson
    reference_interval: tuple[float, float]
    difference: float
    interval: tuple[float, float]  # 95%, Newcombe (1998), method 10
    p_value: float  # Fisher's exact test
    n: tuple[int, int]

    @property
    def worse(self) -> bool:
        """Return True if the current side is significantly worse."""
        return self.p_value <= _ALPHA and self.interval[1] < 0

    def plain(self) -> dict[str, Any]:
        return {**vars(self), "worse": self.worse}


def compare_ratings(current: Sequence[int], reference: Sequence[int]) -> Proportions | None:
    """Compare independent ratings of two sides; a rating above 0 is good. Returns None if a side has no ratings."""
    if not current or not reference:
        return None
    from scipy import stats

    good, n = [sum(r > 0 for r in side) for side in (current, reference)], (len(current), len(reference))
    shares = [good[i] / n[i] for i in (0, 1)]
    wilson = [stats.binomtest(good[i], n[i]).proportion_ci(method="wilson") for i in (0, 1)]
    (low, high), (other_low, other_high) = [(float(w.low), float(w.high)) for w in wilson]
    difference = shares[0] - shares[1]
    down = ((shares[0] - low) ** 2 + (other_high - shares[1]) ** 2) ** 0.5
    up = ((high - shares[0]) ** 2 + (shares[1] - other_low) ** 2) ** 0.5
    return Proportions(
        current=shares[0],
        reference=shares[1],
        current_interval=(low, high),
        reference_interval=(other_low, other_high),
        difference=difference,
        interval=(difference - down, difference + up),
        p_value=float(stats.fisher_exact([[good[0], n[0] - good[0]], [good[1], n[1] - good[1]]]).pvalue),
        n=n,
    )


def compare_probes(current: Mapping[str, float], reference: Mapping[str, float], *, seed: int = 0) -> Comparison:
    """Compare scores of two models, or of one model at two times, question by question.

    Raises DataError if they have no question in common.
    """
    both = sorted(current.keys() & reference.keys())
    if not both:
        raise DataError("probes: the two sides have no question in common; ask both the same set")
    return compare_pairs([current[item] for item in both], [reference[item] for item in both], seed=seed)


def read_probes(path: Path) -> dict[str, float]:
    """Read the scores of a probe set: lines of {item, value}, or the items of an evaluation (a file, or a run's directory).

    Raises DataError.
    """
    file = next((candidate for candidate in (path / "evaluation/items.jsonl", path) if candidate.is_file()), None)
    if file is None:
        raise DataError(f"probes: {path}: no such file, and not a finished evaluate run; check the path")
    scores: dict[str, float] = {}
    for line in read_lines(file):
        if isinstance(line.get("values"), dict):  # an item of an evaluation: one value per metric
            scores.update({f"{line['task']}/{line['item']}/{name}": float(value) for name, value in line["values"].items()})
        elif "item" in line and isinstance(line.get("value"), (int, float)):
            scores[str(line["item"])] = float(line["value"])
        else:
            raise DataError(f"probes: {file}: a line has neither {{item, value}} nor {{task, item, values}}; check the file")
    if not scores:
        raise DataError(f"probes: {file} is empty; run the probe set first")
    return scores

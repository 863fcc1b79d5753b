"""Statistics of a run's feedback: counts, and mean ratings with intervals, by version and over time."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ropewalk.jobs.results.statistics import mean_error
from ropewalk.jobs.serving.feedback.read import Ratings
from ropewalk.jobs.serving.feedback.records import answers_store, exchanges_store

Key = tuple[str, str]  # version, hour
HOURS_UP_TO_SECONDS = 2 * 86_400.0
QUANTILE = 1.959964  # 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class Share:
    """Mean of ratings between 0 and 1, with a 95% interval."""

    n: int
    groups: int  # conversations; each may have several ratings
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """Statistics of one version, hour or day."""

    name: str
    answers: int
    failed: int  # outcomes other than completed and cancelled
    captured: int
    corrections: int
    rated: Share


@dataclass(frozen=True)
class Summary:
    """Statistics of a run's feedback."""

    answers: int
    captured: int
    dropped: int  # exchanges stored without content while the writer could not keep up, or the disk was full
    ratings: int
    outcomes: dict[str, int]
    versions: list[Line]
    times: list[Line]


def share(values: Sequence[float], groups: Sequence[str]) -> Share:
    """Return the mean with Wilson's interval at the effective sample size: ratings within a conversation are correlated.

    Wilson (1927) at the effective sample size p(1-p)/SE^2, with a cluster-robust SE (Korn and Graubard 1998); at p = 0 or 1,
    where SE is zero, each conversation counts once.
    """
    n, num_groups = len(values), len(set(groups))
    if not n:
        return Share(0, 0, None, None, None)
    mean = math.fsum(values) / n
    error = mean_error(values, groups)
    size = min(mean * (1 - mean) / error**2, n) if error else num_groups
    spread = QUANTILE**2 / size
    middle = (mean + spread / 2) / (1 + spread)
    reach = math.sqrt(mean * (1 - mean) * spread + spread**2 / 4) / (1 + spread)
    return Share(n, num_groups, mean, max(0.0, middle - reach), min(1.0, middle + reach))


def by_conversation(ratings: Iterable[tuple[str, int]]) -> list[int]:
    """Return one rating (+1 or -1) per conversation by majority; ties are dropped.

    Tests of proportions need independent ratings, and those of one conversation are often one user's.
    """
    balance: Counter[str] = Counter()
    for conversation, rating in ratings:
        balance[conversation] += rating
    return [1 if total > 0 else -1 for total in balance.values() if total]


def summarize(folder: Path, since: float | None = None) -> Summary:
    """Count and rate all answers since a time, by version and over time (UTC): by hour up to two days, else by day."""
    ratings = Ratings(folder)
    rated = dict.fromkeys(ratings, ("", "", ""))  # version, hour and conversation of each rated answer
    answers, failed, captured, outcomes = Counter[Key](), Counter[Key](), Counter[Key](), Counter[str]()
    first, last, dropped = math.inf, -math.inf, 0
    for row in answers_store(folder).rows(since, ("id", "time", "version", "outcome", "dropped")):
        key = row["version"] or "-", _hour(row["time"])
        answers[key] += 1
        failed[key] += row["outcome"] not in {"completed", "cancelled"}
        outcomes[row["outcome"]] += 1
        first, last, dropped = min(first, row["time"]), max(last, row["time"]), dropped + bool(row["dropped"])
        if row["id"] in rated:
            rated[row["id"]] = *key, row["id"]
    for row in exchanges_store(folder).rows(since, ("id", "time", "version", "conversation")):
        key = row["version"] or "-", _hour(row["time"])
        captured[key] += 1
        if row["id"] in rated:
            rated[row["id"]] = *key, row["conversation"]
    ratings_of = [(about, rating) for number, about in rated.items() if about[0] for rating in ratings.of(number)]

    def lines(name: Callable[[str, str], str]) -> list[Line]:
        values: dict[str, list[tuple[float, str]]] = defaultdict(list)
        corrections: Counter[str] = Counter()
        for (version, hour, conversation), rating in ratings_of:
            corrections[name(version, hour)] += bool(rating.correction)
            if rating.value is not None:
                values[name(version, hour)].append((rating.value, conversation))
        totals = [Counter[str](), Counter[str](), Counter[str]()]
        for total, counts in zip(totals, (answers, failed, captured), strict=True):
            for key, number in counts.items():
                total[name(*key)] += number
        return [
            Line(
                line,
                *(totals[0][line], totals[1][line], totals[2][line], corrections[line]),
                share([value for value, _ in values[line]], [group for _, group in values[line]]),
            )
            for line in sorted({*totals[0], *totals[2], *corrections})
        ]

    by_hour = last - first <= HOURS_UP_TO_SECONDS
    return Summary(
        answers=answers.total(),
        captured=captured.total(),
        dropped=dropped,
        ratings=len(ratings_of),
        outcomes=dict(outcomes.most_common()),
        versions=lines(lambda version, _: version),
        times=lines(lambda _, hour: hour if by_hour else hour.partition(" ")[0]),
    )


def _hour(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:00", time.gmtime(seconds))

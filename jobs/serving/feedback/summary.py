"""Statistics of a run's feedback: counts, and mean ratings with intervals, by version and over time."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ropewalk.jobs.results.statistics import mean_error
from ropewalk.jobs.serving.feedback.read import Feedback, Rating

HOUR, DAY = "%Y-%m-%d %H:00", "%Y-%m-%d"
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
    ratings: int
    unknown: int  # ratings whose answer is not in the ledger (yet)
    outcomes: dict[str, int]
    versions: list[Line]
    times: list[Line]

    def plain(self) -> dict[str, Any]:
        return asdict(self)


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


def summarize(feedback: Feedback) -> Summary:
    """Count and rate all answers, by version and over time (UTC): by hour up to two days, else by day."""
    ratings = [
        *(
            (exchange.version, exchange.time, exchange.conversation, r)
            for exchange in feedback.exchanges
            for r in exchange.ratings
        )
    ]
    ratings += [(row["version"], row["time"], row["id"], r) for row, r in feedback.uncaptured]
    times = [row["time"] for row in feedback.answers]
    time_format = HOUR if times and max(times) - min(times) <= HOURS_UP_TO_SECONDS else DAY

    def moment(seconds: float) -> str:
        return time.strftime(time_format, time.gmtime(seconds))

    return Summary(
        answers=len(feedback.answers),
        captured=len(feedback.exchanges),
        ratings=len(ratings),
        unknown=len(feedback.unknown),
        outcomes=dict(Counter(row["outcome"] for row in feedback.answers).most_common()),
        versions=_lines(feedback, ((v, c, r) for v, _, c, r in ratings), lambda version, _: version),
        times=_lines(feedback, ((moment(t), c, r) for _, t, c, r in ratings), lambda _, seconds: moment(seconds)),
    )


def _lines(feedback: Feedback, ratings: Iterable[tuple[str, str, Rating]], name: Any) -> list[Line]:
    answers = Counter(name(row["version"], row["time"]) for row in feedback.answers)
    failed = Counter(name(r["version"], r["time"]) for r in feedback.answers if r["outcome"] not in {"completed", "cancelled"})
    captured = Counter(name(exchange.version, exchange.time) for exchange in feedback.exchanges)
    values: dict[str, list[tuple[float, str]]] = defaultdict(list)
    corrections: Counter[str] = Counter()
    for key, conversation, rating in ratings:
        corrections[key] += bool(rating.correction)
        if rating.value is not None:
            values[key].append((rating.value, conversation))
    return [
        Line(
            key or "-",
            answers[key],
            failed[key],
            captured[key],
            corrections[key],
            share([value for value, _ in values[key]], [group for _, group in values[key]]),
        )
        for key in sorted({*answers, *captured, *values, *corrections})
    ]

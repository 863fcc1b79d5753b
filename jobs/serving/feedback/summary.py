"""What a run's feedback comes to: how much there is, and how answers were rated, by version and over time, with intervals."""

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
QUANTILE = 1.959964  # of the normal distribution, for 95%


@dataclass(frozen=True)
class Share:
    """The mean of ratings between 0 and 1, with an interval of 95%."""

    n: int
    groups: int  # conversations, of which several ratings may be
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """One version, or one hour or day."""

    name: str
    answers: int
    failed: int  # outcomes other than completed and cancelled
    captured: int
    corrections: int
    rated: Share


@dataclass(frozen=True)
class Summary:
    """All of a run."""

    answers: int
    captured: int
    ratings: int
    unknown: int  # ratings of answers that nobody knows (yet)
    outcomes: dict[str, int]
    versions: list[Line]
    times: list[Line]

    def plain(self) -> dict[str, Any]:
        """As values for JSON."""
        return asdict(self)


def share(values: Sequence[float], groups: Sequence[str]) -> Share:
    """The mean with Wilson's interval, of as many ratings as are independent: ratings of one conversation are alike.

    Wilson (1927) at the effective sample size p(1-p)/SE^2, SE robust to groups (Korn and Graubard 1998); at p = 0 or 1, where
    SE says nothing, each conversation counts once.
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


def by_conversation(said: Iterable[tuple[str, int]]) -> list[int]:
    """One rating (+1, -1) a conversation, as most of its ratings have it; of one that is divided, none.

    So they are independent, as tests of two shares want them: those of one conversation are alike, and often one person's.
    """
    balance: Counter[str] = Counter()
    for conversation, rating in said:
        balance[conversation] += rating
    return [1 if total > 0 else -1 for total in balance.values() if total]


def summarize(found: Feedback) -> Summary:
    """Count and rate everything, by version and over time: by hours up to two days, else by days, of UTC."""
    ratings = [*((one.version, one.time, one.conversation, r) for one in found.exchanges for r in one.ratings)]
    ratings += [(row["version"], row["time"], row["id"], r) for row, r in found.uncaptured]
    times = [row["time"] for row in found.answers]
    form = HOUR if times and max(times) - min(times) <= HOURS_UP_TO_SECONDS else DAY

    def moment(seconds: float) -> str:
        return time.strftime(form, time.gmtime(seconds))

    return Summary(
        answers=len(found.answers),
        captured=len(found.exchanges),
        ratings=len(ratings),
        unknown=len(found.unknown),
        outcomes=dict(Counter(row["outcome"] for row in found.answers).most_common()),
        versions=_lines(found, ((v, c, r) for v, _, c, r in ratings), lambda version, _: version),
        times=_lines(found, ((moment(t), c, r) for _, t, c, r in ratings), lambda _, seconds: moment(seconds)),
    )


def _lines(found: Feedback, ratings: Iterable[tuple[str, str, Rating]], name: Any) -> list[Line]:
    answers = Counter(name(row["version"], row["time"]) for row in found.answers)
    failed = Counter(name(r["version"], r["time"]) for r in found.answers if r["outcome"] not in {"completed", "cancelled"})
    captured = Counter(name(one.version, one.time) for one in found.exchanges)
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

"""A score with its evidence: value, standard error, n, and the hash of the questions."""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from ropewalk.jobs.results.statistics import Statistic, bootstrap_error, mean_error


@dataclass(frozen=True, kw_only=True)
class Score:
    """A value with its evidence. `standard_error` is None if n is too small to estimate it."""

    value: float
    standard_error: float | None
    n: int  # items
    hash: str  # of all questions; only scores with equal hashes are comparable

    def plain(self) -> dict[str, Any]:
        """Return the score as stored in results and files; NaN is null, as JSON has no NaN."""
        error = self.standard_error
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "standard_error": error if error is not None and math.isfinite(error) else None,
            "n": self.n,
            "hash": self.hash,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Score":
        """Read a score written by `plain`."""
        value = values["value"]
        return cls(
            value=math.nan if value is None else float(value),
            standard_error=values["standard_error"],
            n=int(values["n"]),
            hash=str(values["hash"]),
        )

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        return f"{self.value:.4g}{error} (n = {self.n})"


def mean_score(values: Sequence[float], *, hash: str, groups: Sequence[Hashable] | None = None) -> Score:  # noqa: A002
    """Return the mean of items as a score; with `groups` the standard error is clustered."""
    mean = math.fsum(values) / len(values) if values else math.nan
    return Score(value=mean, standard_error=mean_error(values, groups), n=len(values), hash=hash)


def statistic_score(
    items: Sequence[Any],
    statistic: Statistic,
    *,
    hash: str,  # noqa: A002
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Score:
    """Return a statistic that is not a mean of items (corpus F1, a ratio of sums) as a score.

    The standard error is bootstrapped over groups, within each of the `strata` if they are given.
    """
    return Score(
        value=float(statistic(items)),
        standard_error=bootstrap_error(items, statistic, groups=groups, strata=strata, seed=seed),
        n=len(items),
        hash=hash,
    )


def hash_of(*parts: Any) -> str:
    """Hash JSON-like values, such as a task's definition and its prompts, equally on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return f"xxh3:{xxhash.xxh3_128_hexdigest(text.encode('utf-8', 'surrogatepass'))}"

"""A score with its evidence: value, standard error, n, and the hash of what was asked."""

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from ropewalk.jobs.results.statistics import Statistic, bootstrap_error, mean_error


@dataclass(frozen=True, kw_only=True)
class Score:
    """A figure that says what it rests on. `standard_error` is None where n is too small to have one."""

    value: float
    standard_error: float | None
    n: int  # items
    hash: str  # of all that was asked, so that only what was asked alike is compared

    def plain(self) -> dict[str, Any]:
        """The score as results and files hold it; what is no number is null, for JSON has no NaN."""
        error = self.standard_error
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "standard_error": error if error is not None and math.isfinite(error) else None,
            "n": self.n,
            "hash": self.hash,
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Score":
        """Read what `plain` has written."""
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
    """The mean of items; its standard error is clustered where `groups` says which items belong together."""
    mean = math.fsum(values) / len(values) if values else math.nan
    return Score(value=mean, standard_error=mean_error(values, groups), n=len(values), hash=hash)


def statistic_score(
    items: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float],
    *,
    hash: str,  # noqa: A002
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Score:
    """A figure that is no mean of items (F1 of a corpus, a quotient of sums); its standard error is bootstrapped over groups,
    and within `strata` where the figure compares these.
    """
    found: Statistic = statistic
    return Score(
        value=float(statistic(items)),
        standard_error=bootstrap_error(items, found, groups=groups, strata=strata, seed=seed),
        n=len(items),
        hash=hash,
    )


def hash_of(*parts: Any) -> str:
    """A hash of plain values, the same on every machine: of a task's definition and all its prompts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return f"xxh3:{xxhash.xxh3_128_hexdigest(text.encode('utf-8', 'surrogatepass'))}"

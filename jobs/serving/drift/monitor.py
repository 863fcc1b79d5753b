"""Repeated drift tests whose combined false-alarm rate is that of a single test."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LATER = 0.1  # share of the rate reserved for looks after the first block; a tenth of that after the second, and so on


@dataclass(frozen=True, kw_only=True)
class Look:
    """One interim test: its p-value, the level it had to reach, and the decision."""

    number: int  # from 1
    time: float
    p: float
    level: float
    alarm: bool


@dataclass(kw_only=True)
class Monitor:
    """A series of looks at one question that share one false-alarm rate.

    Alpha-spending of Tian and Ramdas (2021, "Online control of the familywise error rate"): the level of look k is fixed in
    advance, and the levels sum to at most `alpha`. By the union bound this holds for dependent looks too: a shared reference,
    overlapping windows. Each of the first `horizon` looks gets 0.9 / horizon of the rate, each of the next `horizon` looks a
    tenth of that, and so on.
    """

    alpha: float = 0.05
    horizon: int = 100
    looks: list[Look] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, Any] | None, *, alpha: float = 0.05, horizon: int = 100) -> "Monitor":
        """Restore a monitor from `plain()`, or start one if `state` is empty. A restored series keeps its own settings."""
        if not state:
            return cls(alpha=alpha, horizon=horizon)
        return cls(alpha=state["alpha"], horizon=state["horizon"], looks=[Look(**look) for look in state["looks"]])

    @property
    def level(self) -> float:
        block = len(self.looks) // self.horizon
        return float(self.alpha * (1 - _LATER) * _LATER**block / self.horizon)

    @property
    def permutations(self) -> int:
        """Number of permutations per test that lets the next look reach its level: four tests, Holm's correction included."""
        return int(4 / self.level) + 1

    def look(self, p: float, when: float | None = None) -> Look:
        """Test the corrected p-value of the next look and record it."""
        level = self.level
        result = Look(number=len(self.looks) + 1, time=time.time() if when is None else when, p=p, level=level, alarm=p <= level)
        self.looks.append(result)
        return result

    def plain(self) -> dict[str, Any]:
        """Return the state as JSON values; `of` reads them."""
        return {"alpha": self.alpha, "horizon": self.horizon, "looks": [vars(look) for look in self.looks]}

"""Looks week after week that together raise a false alarm no more often than one test would."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LATER = 0.1  # of the rate is left for all looks behind the first block, a tenth of that for those behind the second, and so on


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look: its p-value, what it had to fall below, and whether it did."""

    number: int  # from 1
    time: float
    p: float
    level: float
    alarm: bool


@dataclass(kw_only=True)
class Monitor:
    """A series of looks at one question, of which all share one rate of false alarms.

    Alpha-Spending of Tian and Ramdas (2021, "Online control of the familywise error rate"): look k is tested at a level that
    is fixed beforehand, and all levels together are at most `alpha`. By the union bound that holds whatever the looks share: one
    reference for all of them, windows that overlap. Each of the first `horizon` looks has 0.9 / horizon of the rate, each of the
    next as many a tenth of that.
    """

    alpha: float = 0.05
    horizon: int = 100
    looks: list[Look] = field(default_factory=list)

    @classmethod
    def of(cls, state: Mapping[str, Any] | None, *, alpha: float = 0.05, horizon: int = 100) -> "Monitor":
        """The monitor whose `plain()` this is; with None a new one. What a series began with stays."""
        if not state:
            return cls(alpha=alpha, horizon=horizon)
        return cls(alpha=state["alpha"], horizon=state["horizon"], looks=[Look(**look) for look in state["looks"]])

    @property
    def level(self) -> float:
        """The level of the next look."""
        block = len(self.looks) // self.horizon
        return float(self.alpha * (1 - _LATER) * _LATER**block / self.horizon)

    @property
    def permutations(self) -> int:
        """So many arrangements of each of four tests let the next look fall below its level, Holm's correction included."""
        return int(4 / self.level) + 1

    def look(self, p: float, when: float | None = None) -> Look:
        """Judge the p-value of the next look, corrected for the tests in it, and remember it."""
        level = self.level
        made = Look(number=len(self.looks) + 1, time=time.time() if when is None else when, p=p, level=level, alarm=p <= level)
        self.looks.append(made)
        return made

    def plain(self) -> dict[str, Any]:
        """What a file holds of it, and `of` reads."""
        return {"alpha": self.alpha, "horizon": self.horizon, "looks": [vars(look) for look in self.looks]}

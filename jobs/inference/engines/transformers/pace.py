"""Whether a draft pays: it is asked as long as answers come sooner with its guesses than without."""

from typing import NamedTuple

TRIED, PLAIN = 24, 8  # passes with guesses, and without, that are compared
KEPT_TOKENS = 500  # which the better way draws before both are tried again


class Way(NamedTuple):
    """What tokens drawn in one way have cost."""

    passes: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def cost(self) -> float:
        """Seconds a token."""
        return self.seconds / self.tokens


class Pace:
    """Of one model and its draft, over all answers: guesses first, then passes without; the quicker way goes on for a while."""

    def __init__(self) -> None:
        self._ways = {True: Way(), False: Way()}  # with guesses, without
        self._better: bool | None = None  # None: both are being tried
        self._left = 0  # tokens of the better way

    @property
    def guesses(self) -> bool:
        """Whether the next pass is to have guesses."""
        return self._ways[True].passes < TRIED if self._better is None else self._better

    def took(self, *, guessed: bool, tokens: int, seconds: float) -> None:
        """Count a pass for which the draft was asked, or was not."""
        if self._better is not None:
            self._left -= tokens
            if self._left <= 0:
                self._ways, self._better = {True: Way(), False: Way()}, None
            return
        before = self._ways[guessed]
        self._ways[guessed] = Way(before.passes + 1, before.tokens + tokens, before.seconds + seconds)
        if self._ways[True].passes >= TRIED and self._ways[False].passes >= PLAIN:
            self._better, self._left = self._ways[True].cost < self._ways[False].cost, KEPT_TOKENS

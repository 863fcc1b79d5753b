"""Length bias of preference pairs: a model may learn only that longer answers are preferred."""

import math

from pydantic import Field

from ropewalk.cluster.section import Section

_SHARE = 0.6  # smallest share, of pairs of different lengths, that is reported as a bias
_STANDARD_ERRORS = 3.0


class Lengths(Section):
    """Token counts of the answers of all pairs."""

    pairs: int = 0
    chosen: int = Field(default=0, description="sum over pairs")
    rejected: int = Field(default=0, description="sum over pairs")
    chosen_longer: int = 0
    rejected_longer: int = 0

    def plus(self, chosen: int, rejected: int) -> "Lengths":
        return Lengths(
            pairs=self.pairs + 1,
            chosen=self.chosen + chosen,
            rejected=self.rejected + rejected,
            chosen_longer=self.chosen_longer + (chosen > rejected),
            rejected_longer=self.rejected_longer + (rejected > chosen),
        )

    @property
    def share_longer(self) -> float | None:
        """The share of pairs whose preferred answer is longer, among pairs of different lengths."""
        differing = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / differing if differing else None

    def bias(self) -> dict[str, float] | None:
        """Return the figures of a length bias (in either direction), or None if it is small or not significant."""
        share, differing = self.share_longer, self.chosen_longer + self.rejected_longer
        if share is None or max(share, 1 - share) < _SHARE or abs(share - 0.5) < _STANDARD_ERRORS * 0.5 / math.sqrt(differing):
            return None
        return {"share_longer": share, "chosen": self.chosen / self.pairs, "rejected": self.rejected / self.pairs}

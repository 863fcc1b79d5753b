"""Whether preferred answers are the longer ones: a model that learns from such pairs may learn length alone."""

import math

from pydantic import Field

from ropewalk.cluster.config import Section

_SHARE = 0.6  # of the pairs whose answers differ in length: below it a bias is not worth a warning
_STANDARD_ERRORS = 3.0


class Lengths(Section):
    """Lengths in tokens of the answers of all pairs."""

    pairs: int = 0
    chosen: int = Field(default=0, description="sum over pairs")
    rejected: int = Field(default=0, description="sum over pairs")
    chosen_longer: int = 0
    rejected_longer: int = 0

    def plus(self, chosen: int, rejected: int) -> "Lengths":
        """Count a pair."""
        return Lengths(
            pairs=self.pairs + 1,
            chosen=self.chosen + chosen,
            rejected=self.rejected + rejected,
            chosen_longer=self.chosen_longer + (chosen > rejected),
            rejected_longer=self.rejected_longer + (rejected > chosen),
        )

    @property
    def share_longer(self) -> float | None:
        """Of the pairs whose answers differ in length, the share in which the preferred one is longer."""
        differing = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / differing if differing else None

    def bias(self) -> dict[str, float] | None:
        """The figures of a length bias (in either direction), or None: where chance explains what is seen, or it is small."""
        share, differing = self.share_longer, self.chosen_longer + self.rejected_longer
        if share is None or max(share, 1 - share) < _SHARE or abs(share - 0.5) < _STANDARD_ERRORS * 0.5 / math.sqrt(differing):
            return None
        return {"share_longer": share, "chosen": self.chosen / self.pairs, "rejected": self.rejected / self.pairs}

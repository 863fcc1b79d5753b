"""Which samples of a global batch each rank computes, and in how many passes."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The global batch dealt to the ranks, as evenly as whole sequences allow.

    The step that starts at data position p takes samples p .. p + global_batch - 1, whatever the world size.
    Every rank makes the same number of passes, since collectives must match; a rank with fewer micro-batches
    makes up for it with passes of weight zero.
    """

    global_batch: int
    micro_batch: int
    world_size: int
    rank: int

    @property
    def passes(self) -> int:
        """Forward and backward passes of each rank in one step."""
        most_sequences = -(-self.global_batch // self.world_size)
        return -(-most_sequences // self.micro_batch)

    def samples(self, position: int) -> range:
        """The samples that this rank computes in the step at `position`; may be empty."""
        start = self.global_batch * self.rank // self.world_size
        stop = self.global_batch * (self.rank + 1) // self.world_size
        return range(position + start, position + stop)

    def micro_batches(self, num_sequences: int) -> list[slice]:
        """How this rank's sequences are cut into passes; an empty slice is a pass of weight zero."""
        assert num_sequences <= self.passes * self.micro_batch, (num_sequences, self)
        starts = range(0, self.passes * self.micro_batch, self.micro_batch)
        return [slice(min(s, num_sequences), min(s + self.micro_batch, num_sequences)) for s in starts]

    def steps(self, position: int, num_steps: int) -> Iterator[range]:
        """This rank's samples of the next steps."""
        for step in range(num_steps):
            yield self.samples(position + step * self.global_batch)

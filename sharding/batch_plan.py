"""The samples of a global batch that each rank computes, cut into micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from ropewalk.sharding.config import BatchConfig
from ropewalk.sharding.group import Group


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The global batch dealt to the data ranks, as evenly as whole samples allow.

    The step that starts at data position p takes samples p .. p + global_batch - 1, whatever the number of ranks.
    Every rank computes the same number of micro-batches, since collectives must match; where a rank has no samples
    left for one, it is empty and the rank computes a sample that weighs nothing instead.
    """

    global_batch: int
    micro_batch: int
    data_size: int
    data_rank: int

    @classmethod
    def of(cls, config: BatchConfig, group: Group) -> Self:
        assert config.micro_batch != "auto", "the loop chooses a number first"
        sizes = {"global_batch": config.global_batch, "micro_batch": config.micro_batch}
        return cls(**sizes, data_size=group.data_size, data_rank=group.data_rank)

    @property
    def num_micro_batches(self) -> int:
        """Forward and backward passes of each rank in one step."""
        max_samples = -(-self.global_batch // self.data_size)
        return -(-max_samples // self.micro_batch)

    def samples(self, position: int) -> range:
        """Return the samples that this rank computes in the step at `position`; may be empty."""
        start = self.global_batch * self.data_rank // self.data_size
        stop = self.global_batch * (self.data_rank + 1) // self.data_size
        return range(position + start, position + stop)

    def micro_batches(self, num_samples: int) -> list[slice]:
        """Cut this rank's samples into micro-batches; an empty slice is a micro-batch without samples."""
        assert num_samples <= self.num_micro_batches * self.micro_batch, (num_samples, self)
        starts = range(0, self.num_micro_batches * self.micro_batch, self.micro_batch)
        return [slice(min(s, num_samples), min(s + self.micro_batch, num_samples)) for s in starts]

    def steps(self, position: int, num_steps: int) -> Iterator[range]:
        for step in range(num_steps):
            yield self.samples(position + step * self.global_batch)

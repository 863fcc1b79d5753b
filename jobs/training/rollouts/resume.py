"""Where the ledger stands when ranks come to a round: in line with the run's position, and what is kept of it."""

import pyarrow as pa

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.jobs.training.rollouts.ledger import ChunkName, Round, arrow_table, chunk_of, rounds, settle
from ropewalk.sharding.group import Group

Parts = dict[ChunkName, tuple[str, pa.Table]]  # a chunk's file and rows


def take_up(run: RunDir, fence: Fence, position: int, step: int, *, went_back: bool) -> None:
    """Bring the ledger in line with where an attempt begins, or the run went back to. Rank 0 calls it."""
    if not went_back:
        return settle(run, fence, position, step)
    for one in rounds(run, fence):
        if one.position < position and one.state == "done":
            one.drop("the run went back to a checkpoint and left these samples out")


def kept(one: Round, group: Group) -> tuple[bool, Parts]:
    """Whether the round is complete in the ledger, and the chunks of it that are whole; all ranks call it together."""
    found: tuple[bool, list[tuple[str, bytes]]] | None = None
    if group.is_main:
        one.make()
        one.withdraw()
        one.remove_damaged()
        found = one.manifest() is not None, list(one.chunks())
    complete, files = group.broadcast_object(found)
    return complete, {chunk_of(name): (name, arrow_table(raw)) for name, raw in files}

"""Resume from the ledger: update its marks, and load what a round has."""

import pyarrow as pa

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.jobs.training.rollouts.ledger import ChunkName, Round, arrow_table, parse_chunk_name, rounds, update_marks
from ropewalk.sharding.group import Group

Parts = dict[ChunkName, tuple[str, pa.Table]]  # file name and rows of each chunk


def resume_ledger(run: RunDir, fence: Fence, position: int, step: int, *, rolled_back: bool) -> None:
    """Bring the ledger in line with the position at which an attempt starts, or to which the run rolled back. On rank 0."""
    if not rolled_back:
        return update_marks(run, fence, position, step)
    for ledger_round in rounds(run, fence):
        if ledger_round.position < position and ledger_round.state == "done":
            ledger_round.drop("the run rolled back to a checkpoint and skipped these samples")


def load_round(ledger_round: Round, group: Group) -> tuple[bool, Parts]:
    """Return (the round is complete, its intact chunks); all ranks call it together."""
    content: tuple[bool, list[tuple[str, bytes]]] | None = None
    if group.is_main:
        ledger_round.make()
        ledger_round.withdraw()
        ledger_round.remove_damaged()
        content = ledger_round.manifest() is not None, list(ledger_round.chunks())
    complete, files = group.broadcast_object(content, tuple[bool, list[tuple[str, bytes]]])
    return complete, {parse_chunk_name(name): (name, arrow_table(raw)) for name, raw in files}

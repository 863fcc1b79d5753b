"""Tables that are computed once and kept in a folder beside the data, chunk by chunk: resumable, and verified."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.heartbeat import Phase
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import checksum_of_file
from ropewalk.jobs.training.loop.model_record import Weights
from ropewalk.sharding.group import Group

_MARK, _SUM = b"fingerprint", b"checksum"


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Arrow files in a folder; one that is damaged, or of another fingerprint, counts as missing."""

    place: StoragePath
    fingerprint: str

    @classmethod
    def beside(cls, data: str, suffix: str, fingerprint: str, *, otherwise: Path) -> "Chunks":
        """In `DATA.SUFFIX/`, where other runs find them too; in the folder `otherwise` where nothing can be written there."""
        place = StoragePath(f"{data.rstrip('/')}.{suffix}/{fingerprint.rpartition(':')[2][:16]}")
        try:
            place.write("fingerprint", fingerprint.encode())
        except OSError:
            return cls(place=StoragePath(otherwise), fingerprint=fingerprint)
        return cls(place=place, fingerprint=fingerprint)

    def write(self, name: str, table: pa.Table) -> int:
        """Keep a chunk and return its size in bytes; another run may write the same one at the same time."""
        raw = _arrow(table.replace_schema_metadata(None))
        said = {_MARK: self.fingerprint, _SUM: xxhash.xxh3_128_hexdigest(raw)}
        content = _arrow(table.replace_schema_metadata(said))
        self.place.write(name, content)
        return len(content)

    def read(self, name: str) -> pa.Table | None:
        """A chunk, or None where it is not there or does not verify."""
        try:
            table = pa.ipc.open_file(pa.BufferReader(self.place.read(name))).read_all()
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            if getattr(error, "errno", None):  # of the file system, not of the content
                raise
            return None
        said, bare = table.schema.metadata or {}, table.replace_schema_metadata(None)
        whole = said.get(_MARK) == self.fingerprint.encode()
        return bare if whole and said.get(_SUM) == xxhash.xxh3_128_hexdigest(_arrow(bare)).encode() else None

    def size(self, name: str) -> int:
        """Bytes of a chunk that is there."""
        return self.place.size(name)


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def weights_content(weights: Weights | None) -> Mapping[str, Any]:
    """What tells the weights of a model from others: checksums of a directory's files, the run and step of a checkpoint."""
    if weights is None or weights.path is None:
        return weights.model_dump(exclude_none=True) if weights is not None else {}
    place = StoragePath(weights.path)
    return {name: checksum_of_file(place, name) for name in sorted(place.names()) if name.endswith((".safetensors", ".bin"))}


def compute_chunks(
    context: JobContext, group: Group, chunks: Chunks, missing: Sequence[str], compute: Callable[[str, bool], pa.Table | None]
) -> None:
    """Have the missing chunks computed, each by one rank, and keep them. All ranks call it together, with the same names.

    `compute(name, mine)` is called equally often on all ranks, for collectives must match; where the chunk is not this
    rank's, what it returns is not looked at. Raises StopRequested; what is kept by then is not computed again.
    """
    for start in range(0, len(missing), group.data_size):
        if group.any(context.stop_requested()):
            raise StopRequested("the chunks that are computed are kept")
        context.heart.beat(Phase.VALIDATION, 0)
        at = start + group.data_rank
        mine = at < len(missing)
        table = compute(missing[at] if mine else missing[start], mine)
        if mine and group.counts_samples:
            assert table is not None
            context.fence.check()
            chunks.write(missing[at], table)
    group.barrier()

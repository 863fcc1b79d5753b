"""Tables computed once and stored in a folder beside the data, chunk by chunk: resumable, and verified."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.phase_clock import Phase
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import checksum_of_file
from ropewalk.jobs.training.loop.architecture.model_record import Weights
from ropewalk.sharding.group import Group

_MARK, _SUM = b"fingerprint", b"checksum"


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Arrow files in a folder; one that is damaged, or has another fingerprint, counts as missing."""

    folder: StoragePath
    fingerprint: str

    @classmethod
    def beside(cls, data: str, suffix: str, fingerprint: str, *, otherwise: Path) -> "Chunks":
        """Choose `DATA.SUFFIX/`, where other runs find the chunks too, or the folder `otherwise` if that is not writable."""
        folder = StoragePath(f"{data.rstrip('/')}.{suffix}/{fingerprint.rpartition(':')[2][:16]}")
        try:
            folder.write("fingerprint", fingerprint.encode())
        except OSError:
            return cls(folder=StoragePath(otherwise), fingerprint=fingerprint)
        return cls(folder=folder, fingerprint=fingerprint)

    def write(self, name: str, table: pa.Table) -> int:
        """Store a chunk and return its size in bytes; another run may write the same chunk at the same time."""
        raw = _arrow(table.replace_schema_metadata(None))
        metadata = {_MARK: self.fingerprint, _SUM: xxhash.xxh3_128_hexdigest(raw)}
        content = _arrow(table.replace_schema_metadata(metadata))
        self.folder.write(name, content)
        return len(content)

    def read(self, name: str) -> pa.Table | None:
        """Return a chunk, or None if it is missing or fails verification."""
        try:
            table = pa.ipc.open_file(pa.BufferReader(self.folder.read(name))).read_all()
            table.validate(full=True)  # Arrow aborts the process on damaged list offsets
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            if getattr(error, "errno", None):  # an error of the file system, not of the content
                raise
            return None
        metadata, bare = table.schema.metadata or {}, table.replace_schema_metadata(None)
        matches = metadata.get(_MARK) == self.fingerprint.encode()
        return bare if matches and metadata.get(_SUM) == xxhash.xxh3_128_hexdigest(_arrow(bare)).encode() else None

    def size(self, name: str) -> int:
        return self.folder.size(name)


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def weights_content(weights: Weights | None) -> Mapping[str, Any]:
    """Identify the weights of a model: by checksums of a directory's files, or by the run and step of a checkpoint."""
    if weights is None or weights.path is None:
        return weights.model_dump(exclude_none=True) if weights is not None else {}
    folder = StoragePath(weights.path)
    return {name: checksum_of_file(folder, name) for name in sorted(folder.names()) if name.endswith((".safetensors", ".bin"))}


def compute_chunks(
    context: JobContext, group: Group, chunks: Chunks, missing: Sequence[str], compute: Callable[[str, bool], pa.Table | None]
) -> None:
    """Compute the missing chunks, each on one rank, and store them. All ranks call it together, with the same names.

    `compute(name, mine)` is called equally often on all ranks, since collectives must match; unless `mine`, its result is
    ignored. Raises StopRequested; chunks stored by then are not computed again.
    """
    for start in range(0, len(missing), group.data_size):
        if group.any(context.stop_requested()):
            raise StopRequested("the chunks computed so far are stored")
        context.heart.beat(Phase.VALIDATION, 0)
        number = start + group.data_rank
        mine = number < len(missing)
        table = compute(missing[number] if mine else missing[start], mine)
        if mine and group.counts_samples:
            assert table is not None
            context.fence.check()
            chunks.write(missing[number], table)
    group.barrier()

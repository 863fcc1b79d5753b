"""Log-probabilities under the reference, computed once and stored beside the data: resumable, and verified by a fingerprint."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import xxhash
from torch import nn

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.heartbeat import Phase
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import hash_of
from ropewalk.jobs.training.align.preferences.log_probs import answer_log_probs
from ropewalk.jobs.training.loop.batch import to_device
from ropewalk.jobs.training.loop.source import Source
from ropewalk.sharding.group import Group

ROWS_A_CHUNK = 256
_MARK = b"fingerprint"
_SUM = b"checksum"

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Chunks of log-probabilities in a folder; one that is damaged, or has another fingerprint, counts as missing."""

    folder: StoragePath
    fingerprint: str

    def write(self, name: str, values: Values) -> None:
        """Store a chunk, [rows, A]; another run may write the same chunk at the same time."""
        flat = np.ascontiguousarray(values).reshape(-1)
        table = pa.table({"log_prob": flat}).replace_schema_metadata(
            {_MARK: self.fingerprint, _SUM: xxhash.xxh3_128_hexdigest(flat.tobytes()), b"answers": str(values.shape[1])}
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self.folder.write(name, sink.getvalue().to_pybytes())

    def read(self, name: str) -> Values | None:
        """Return a chunk, [rows, A], or None if it is missing or fails verification."""
        try:
            table = pa.ipc.open_file(pa.BufferReader(self.folder.read(name))).read_all()
            values: Values = table.column("log_prob").to_numpy()
            metadata = table.schema.metadata or {}
            answers = int(metadata.get(b"answers", b"1"))
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            if getattr(error, "errno", None):  # an error of the file system, not of the content
                raise
            return None
        if (
            metadata.get(_MARK) != self.fingerprint.encode()
            or metadata.get(_SUM) != xxhash.xxh3_128_hexdigest(values.tobytes()).encode()
        ):
            return None
        return values.reshape(-1, answers)


def chunk_names(split: str, rows: int) -> list[tuple[str, range]]:
    """Return the files of a split, with the rows of each."""
    starts = range(0, rows, ROWS_A_CHUNK)
    return [(f"{split}-{i:05d}.arrow", range(start, min(start + ROWS_A_CHUNK, rows))) for i, start in enumerate(starts)]


def cache_of(data: str, fallback: Path, fingerprint: str) -> Cache:
    """Choose a folder beside the data, where other runs of a sweep find it too, or `fallback` if that is not writable."""
    word = fingerprint.rpartition(":")[2][:16]
    beside = StoragePath(f"{data.rstrip('/')}.reference/{word}")
    try:
        if any(letter in data for letter in "*?["):
            raise PermissionError
        beside.write("fingerprint", fingerprint.encode())
    except OSError:
        return Cache(folder=StoragePath(fallback), fingerprint=fingerprint)
    return Cache(folder=beside, fingerprint=fingerprint)


def reference_fingerprint(model: Mapping[str, Any], weights: Mapping[str, Any] | None, data_hash: str, precision: str) -> str:
    """Hash everything that determines the log-probabilities: model, content of its weights, token ids, precision."""
    content: dict[str, Any] = {"from": dict(weights or {})}
    if weights and weights.get("path"):
        folder = StoragePath(weights["path"])
        files = [name for name in folder.names() if name.endswith((".safetensors", ".bin"))]
        content = {name: _checksum(folder, name) for name in files}
    return hash_of({"model": dict(model), "weights": content, "data": data_hash, "precision": precision})


def _checksum(folder: StoragePath, name: str) -> str:
    digest, size = xxhash.xxh3_128(), folder.size(name)
    for start in range(0, size, 1 << 24):
        digest.update(folder.read(name, start, min(start + (1 << 24), size)))
    return digest.hexdigest()


@torch.no_grad()
def compute_missing(
    context: JobContext, group: Group, model: nn.Module, sources: Mapping[str, Source], *, cache: Cache, micro_batch: int
) -> None:
    """Compute missing chunks, each on one rank; stored ones are not computed again. Raises StopRequested.

    The values do not depend on the number of ranks, since the micro-batches of a chunk do not.
    """
    missing = missing_chunks(sources, cache) if group.is_main else None
    missing = group.broadcast_object(missing)
    for number in range(math.ceil(len(missing) / group.data_size)):
        if group.any(context.stop_requested()):
            raise StopRequested("the log-probabilities of the reference computed so far are stored")
        context.heart.beat(Phase.VALIDATION, 0)
        index = number * group.data_size + group.data_rank
        chunk = missing[index] if index < len(missing) else None
        values = _chunk(group, model, sources, chunk or missing[0], micro_batch, count=chunk is not None)
        if chunk is not None and group.counts_samples:
            cache.write(chunk[0], values)
    group.barrier()


def missing_chunks(sources: Mapping[str, Source], cache: Cache) -> list[tuple[str, str, range]]:
    """Return (file, split, rows) of each missing chunk."""
    return [
        (name, split, rows)
        for split, source in sources.items()
        for name, rows in chunk_names(split, source.epoch_samples or 0)
        if cache.read(name) is None
    ]


def _chunk(
    group: Group, model: nn.Module, sources: Mapping[str, Source], chunk: tuple[str, str, range], micro_batch: int, *, count: bool
) -> Values:
    """Compute the values of a chunk, in as many forward passes as the largest chunk needs, since collectives must match."""
    _, split, rows = chunk
    source, values = sources[split], []
    for start in range(0, ROWS_A_CHUNK, micro_batch):
        positions = rows[start : start + micro_batch] if count else rows[:0]
        batch = source.read(positions) if positions else source.filler()
        sums = answer_log_probs(model, to_device(batch, group.device)).sums
        if positions:
            values.append(sums.cpu().numpy())
    return np.concatenate(values) if values else np.empty((0, 0))


def read_all(cache: Cache, split: str, rows: int) -> torch.Tensor:
    """Return the values of a split, [rows, A]."""
    chunks: Sequence[Values | None] = [cache.read(name) for name, _ in chunk_names(split, rows)]
    assert all(chunk is not None for chunk in chunks), "chunks are computed before they are read"
    return torch.from_numpy(np.concatenate([chunk for chunk in chunks if chunk is not None]))

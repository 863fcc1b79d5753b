"""Log-probabilities under the reference, computed once and kept beside the data: resumable, and verified by a fingerprint."""

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
    """Chunks of log-probabilities in a folder; one that is damaged, or of another fingerprint, counts as missing."""

    place: StoragePath
    fingerprint: str

    def write(self, name: str, values: Values) -> None:
        """Keep a chunk, [rows, A]; another run may write the same one at the same time."""
        flat = np.ascontiguousarray(values).reshape(-1)
        table = pa.table({"log_prob": flat}).replace_schema_metadata(
            {_MARK: self.fingerprint, _SUM: xxhash.xxh3_128_hexdigest(flat.tobytes()), b"answers": str(values.shape[1])}
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self.place.write(name, sink.getvalue().to_pybytes())

    def read(self, name: str) -> Values | None:
        """A chunk, [rows, A], or None where it is not there or does not verify."""
        try:
            table = pa.ipc.open_file(pa.BufferReader(self.place.read(name))).read_all()
            values: Values = table.column("log_prob").to_numpy()
            said = table.schema.metadata or {}
            answers = int(said.get(b"answers", b"1"))
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            if getattr(error, "errno", None):  # of the file system, not of the content
                raise
            return None
        if said.get(_MARK) != self.fingerprint.encode() or said.get(_SUM) != xxhash.xxh3_128_hexdigest(values.tobytes()).encode():
            return None
        return values.reshape(-1, answers)


def chunk_names(split: str, rows: int) -> list[tuple[str, range]]:
    """The files of a split, and the rows that each holds."""
    starts = range(0, rows, ROWS_A_CHUNK)
    return [(f"{split}-{i:05d}.arrow", range(start, min(start + ROWS_A_CHUNK, rows))) for i, start in enumerate(starts)]


def cache_of(data: str, fallback: Path, fingerprint: str) -> Cache:
    """Beside the data, where the runs of a sweep find it too; in the run itself where nothing can be written there."""
    word = fingerprint.rpartition(":")[2][:16]
    beside = StoragePath(f"{data.rstrip('/')}.reference/{word}")
    try:
        if any(letter in data for letter in "*?["):
            raise PermissionError
        beside.write("fingerprint", fingerprint.encode())
    except OSError:
        return Cache(place=StoragePath(fallback), fingerprint=fingerprint)
    return Cache(place=beside, fingerprint=fingerprint)


def reference_fingerprint(model: Mapping[str, Any], weights: Mapping[str, Any] | None, data_hash: str, precision: str) -> str:
    """What decides the log-probabilities: the model, the content of its weights, the token ids, the precision."""
    content: dict[str, Any] = {"from": dict(weights or {})}
    if weights and weights.get("path"):
        place = StoragePath(weights["path"])
        files = [name for name in place.names() if name.endswith((".safetensors", ".bin"))]
        content = {name: _checksum(place, name) for name in files}
    return hash_of({"model": dict(model), "weights": content, "data": data_hash, "precision": precision})


def _checksum(place: StoragePath, name: str) -> str:
    digest, size = xxhash.xxh3_128(), place.size(name)
    for start in range(0, size, 1 << 24):
        digest.update(place.read(name, start, min(start + (1 << 24), size)))
    return digest.hexdigest()


@torch.no_grad()
def compute_missing(
    context: JobContext, group: Group, model: nn.Module, sources: Mapping[str, Source], *, cache: Cache, micro_batch: int
) -> None:
    """Compute the chunks that are missing, each by one rank; what is kept is not computed again. Raises StopRequested.

    The values do not depend on the number of ranks: a chunk is cut into micro-batches in one way.
    """
    missing = missing_chunks(sources, cache) if group.is_main else None
    missing = group.broadcast_object(missing)
    for number in range(math.ceil(len(missing) / group.data_size)):
        if group.any(context.stop_requested()):
            raise StopRequested("the log-probabilities of the reference so far are kept")
        context.heart.beat(Phase.VALIDATION, 0)
        at = number * group.data_size + group.data_rank
        mine = missing[at] if at < len(missing) else None
        values = _chunk(group, model, sources, mine or missing[0], micro_batch, count=mine is not None)
        if mine is not None and group.counts_samples:
            cache.write(mine[0], values)
    group.barrier()


def missing_chunks(sources: Mapping[str, Source], cache: Cache) -> list[tuple[str, str, range]]:
    """(file, split, rows) of each chunk that is not there."""
    return [
        (name, split, rows)
        for split, source in sources.items()
        for name, rows in chunk_names(split, source.epoch_samples or 0)
        if cache.read(name) is None
    ]


def _chunk(
    group: Group, model: nn.Module, sources: Mapping[str, Source], which: tuple[str, str, range], micro_batch: int, *, count: bool
) -> Values:
    """The values of a chunk, in as many forward passes as the largest chunk takes, for collectives must match."""
    _, split, rows = which
    source, found = sources[split], []
    for start in range(0, ROWS_A_CHUNK, micro_batch):
        positions = rows[start : start + micro_batch] if count else rows[:0]
        batch = source.read(positions) if positions else source.filler()
        sums = answer_log_probs(model, to_device(batch, group.device)).sums
        if positions:
            found.append(sums.cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, 0))


def read_all(cache: Cache, split: str, rows: int) -> torch.Tensor:
    """The values of a split, [rows, A]."""
    chunks: Sequence[Values | None] = [cache.read(name) for name, _ in chunk_names(split, rows)]
    assert all(chunk is not None for chunk in chunks), "computed before it is read"
    return torch.from_numpy(np.concatenate([chunk for chunk in chunks if chunk is not None]))

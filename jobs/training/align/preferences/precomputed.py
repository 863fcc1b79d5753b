"""Log-probabilities under the reference, computed once and stored beside the data: resumable, and verified by a fingerprint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import hash_of
from ropewalk.jobs.training.align.preferences.log_probs import answer_log_probs
from ropewalk.jobs.training.align.preferences.source import PreferenceSource
from ropewalk.jobs.training.loop.batch import to_device
from ropewalk.jobs.training.loop.chunks import Chunks, compute_chunks, weights_content
from ropewalk.jobs.training.loop.model_record import Weights
from ropewalk.sharding.group import Group

ROWS_A_CHUNK = 256


def reference_fingerprint(model: Mapping[str, Any], weights: Weights | None, data_hash: str, precision: str) -> str:
    """Hash everything that determines the log-probabilities: model, content of its weights, token ids, precision."""
    return hash_of({"model": dict(model), "weights": dict(weights_content(weights)), "data": data_hash, "precision": precision})


def reference_chunks(data: str, fallback: Path, fingerprint: str) -> Chunks:
    """Choose a folder beside the data, where other runs of a sweep find it too, or `fallback` if that is not writable."""
    if any(letter in data for letter in "*?["):
        return Chunks(folder=StoragePath(fallback), fingerprint=fingerprint)
    return Chunks.beside(data, "reference", fingerprint, otherwise=fallback)


class ReferenceLogProbs:
    """Log-probabilities [rows, A] of each split, in chunks of ROWS_A_CHUNK rows."""

    def __init__(self, chunks: Chunks, sources: Mapping[str, PreferenceSource]) -> None:
        self.chunks, self.sources = chunks, sources
        self._rows = {
            f"{split}-{start // ROWS_A_CHUNK:05d}.arrow": (split, range(start, min(start + ROWS_A_CHUNK, len(source.rows))))
            for split, source in sources.items()
            for start in range(0, len(source.rows), ROWS_A_CHUNK)
        }

    def missing(self) -> list[str]:
        """List the chunks that are missing or damaged."""
        return [name for name in self._rows if self.chunks.read(name) is None]

    @torch.no_grad()
    def compute(self, context: JobContext, group: Group, model: nn.Module, missing: list[str], micro_batch: int) -> None:
        """Compute and store the missing chunks. All ranks call it together. Raises StopRequested.

        The values do not depend on the number of ranks, since the micro-batches of a chunk do not.
        """

        def chunk(name: str, mine: bool) -> pa.Table | None:
            split, rows = self._rows[name]
            source, values = self.sources[split], []
            for start in range(0, ROWS_A_CHUNK, micro_batch):  # as many passes as the largest chunk needs, to match collectives
                positions = rows[start : start + micro_batch] if mine else rows[:0]
                batch = source.read(positions) if positions else source.filler()
                sums = answer_log_probs(model, to_device(batch, group.device)).sums
                if positions:
                    values.append(sums.cpu().numpy())
            return pa.table({"log_probs": list(np.concatenate(values))}) if values else None

        compute_chunks(context, group, self.chunks, missing, chunk)

    def read(self) -> dict[str, torch.Tensor]:
        """Return the values by split, without splits that have no rows."""
        values: dict[str, list[Any]] = {}
        for name, (split, _) in self._rows.items():
            table = self.chunks.read(name)
            assert table is not None, "chunks are computed before they are read"
            values.setdefault(split, []).extend(table["log_probs"].to_pylist())
        return {split: torch.tensor(rows, dtype=torch.float64) for split, rows in values.items()}

"""Verification of candidates: each is read again and compared with those that share a band with it.

gather   shingles and band keys of a unit's candidates → the part of their cluster
verify   clusters of candidates → Jaccard similarity of pairs, clusters of near-duplicates, the document to keep of each
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.near.intermediate import (
    EDGE,
    FOLDER,
    SHINGLE,
    SearchPlan,
    decided_name,
    gathered_name,
    member_type,
    route_name,
    unique_edges,
)
from ropewalk.datapipe.inputs.streams import open_file
from ropewalk.datapipe.text.compiled import kernels
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.text.minhash.signatures import band_keys, shingles_of
from ropewalk.datapipe.text.parted import read_all, read_parts, read_with_file, spread, write_parts

MOST_SHINGLE_BYTES = 512 << 20  # per part; of a larger part, only a sample of the shingles is compared


@dataclass(frozen=True, kw_only=True)
class Gather:
    """Task: read a unit's candidates again and write their shingles and band keys."""

    folder: ClassVar[str] = FOLDER
    index: int  # of the unit in the plan
    blocks: tuple[int, ...]  # documents in each record batch
    texts: str  # path of the unit's texts
    options: NearDuplicates
    plan: SearchPlan

    @property
    def name(self) -> str:
        return f"gather-{self.plan.units[self.index]:06d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write members and shingles by the part of their cluster; return the number of members."""
        plan, unit = self.plan, self.plan.units[self.index]
        names = [route_name(part) for part in range(plan.star)]
        clusters = read_all(work, names, EDGE, self.index, len(plan.units))
        clusters = unique_edges(clusters["from"], clusters["to"])
        members = np.zeros(len(clusters), dtype=member_type(self.options.bands))
        members["row"], members["cluster"] = clusters["from"], clusters["to"]
        shingles = self._read(work, clusters["from"] - plan.offsets[self.index], members)
        parts = spread(members["cluster"].view(np.uint64), plan.verify)
        write_parts(work, gathered_name("members", unit), members, parts, plan.verify)
        owners = np.repeat(parts, members["shingles"])
        write_parts(work, gathered_name("shingles", unit), shingles.view(SHINGLE), owners, plan.verify)
        return {"candidates": len(members)}

    def _read(self, work: StoragePath, rows: NDArray[np.int64], members: NDArray[np.void]) -> NDArray[np.uint64]:
        """Fill in the members' band keys and numbers of shingles, in the order of rows; return all their shingles."""
        hashes = [np.zeros(0, dtype=np.uint64)]
        if not len(rows):
            return hashes[0]
        starts = np.concatenate([[0], np.cumsum(self.blocks)])
        owners = np.searchsorted(starts, rows, side="right") - 1
        with open_file(work, self.texts) as stream:
            reader = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=[3], use_threads=False))
            for block in np.unique(owners).tolist():
                mine = np.flatnonzero(owners == block)
                texts = reader.get_batch(block).column(0).take(pa.array(rows[mine] - starts[block]))
                batch = DocumentBatch.of_column(texts)
                shingles = shingles_of(batch, self.options)
                members["keys"][mine] = band_keys(batch, self.options)
                members["shingles"][mine] = np.diff(shingles.bounds)
                hashes.append(shingles.hashes)
        return np.concatenate(hashes)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Task: compare the candidates of the clusters of one part, and decide which are kept."""

    folder: ClassVar[str] = FOLDER
    part: int
    options: NearDuplicates
    plan: SearchPlan

    @property
    def name(self) -> str:
        return f"verify-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write each dropped document with the one that is kept instead."""
        members, shingles = self._load(work)
        order = np.lexsort((members["row"], members["cluster"]))
        starts = np.concatenate([[0], np.cumsum(members["shingles"])])[:-1].astype(np.int64)
        ordered = members[order]
        stays = np.empty(len(members), dtype=np.int64)
        counts = np.zeros(2, dtype=np.int64)
        kernels("ropewalk.datapipe.dedup.near.compare_kernels").decide(
            np.ascontiguousarray(ordered["cluster"]),
            np.ascontiguousarray(ordered["keys"]),
            starts[order],
            np.ascontiguousarray(ordered["shingles"]),
            shingles,
            self.options.similarity,
            stays,
            counts,
        )
        gone = np.flatnonzero(stays != np.arange(len(stays)))
        rows = ordered["row"]
        decided = np.empty(len(gone), dtype=EDGE)
        decided["from"], decided["to"] = rows[gone], rows[stays[gone]]
        write_parts(work, decided_name(self.part), decided, self.plan.unit_of(decided["from"]), len(self.plan.units))
        sizes = np.bincount(np.unique(stays, return_counts=True)[1]) if len(stays) else np.zeros(0, dtype=int)
        return {
            "compared": int(counts[0]),
            "similar": int(counts[1]),
            "sizes": {str(size): number for size, number in enumerate(sizes.tolist()) if number and size > 1},
        }

    def _load(self, work: StoragePath) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
        """Read the members of the clusters of this part, and their concatenated shingles."""
        units, mine = self.plan.units, (self.part, self.part + 1)
        names = [gathered_name("members", unit) for unit in units]
        members, owner = read_with_file(work, names, member_type(self.options.bands), mine, self.plan.verify)
        bounds = np.searchsorted(owner, np.arange(len(units) + 1))
        every = int(members["shingles"].sum()) * SHINGLE.itemsize // MOST_SHINGLE_BYTES + 1

        def read(index: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
            counts = members["shingles"][bounds[index] : bounds[index + 1]]
            hashes = read_parts(work, gathered_name("shingles", units[index]), SHINGLE, mine, self.plan.verify)["hash"]
            if every == 1:
                return hashes, counts
            mask = hashes % np.uint64(every) == 0
            return hashes[mask], np.bincount(np.repeat(np.arange(len(counts)), counts)[mask], minlength=len(counts))

        of_units = work.each(read, range(len(units)))
        hashes, members["shingles"] = (np.concatenate(columns) for columns in zip(*of_units, strict=True))
        return members, hashes

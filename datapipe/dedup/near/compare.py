"""Which candidates are near-duplicates: each is read again, and compared with those that share a band with it.

gather   a unit's candidates: their shingles and band keys, to the part of their cluster
verify   clusters of candidates: Jaccard similarity of pairs, clusters of near-duplicates, who stays
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.near.places import (
    EDGE,
    FOLDER,
    SHINGLE,
    Places,
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
from ropewalk.datapipe.text.parted import read_all, read_owned, read_parts, spread, write_parts

MOST_SHINGLE_BYTES = 512 << 20  # of a part that is verified at once; of a larger one a share of the shingles speaks for all


@dataclass(frozen=True, kw_only=True)
class Gather:
    """Read a unit's candidates again, for what they are compared by."""

    folder: ClassVar[str] = FOLDER
    place: int  # of the unit, among the units
    blocks: tuple[int, ...]  # documents in each record batch
    texts: str  # the file of the unit's texts
    options: NearDuplicates
    places: Places

    @property
    def name(self) -> str:
        """The name of the task."""
        return f"gather-{self.places.units[self.place]:06d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write members and shingles by the part of their cluster; returns the number of members."""
        places, unit = self.places, self.places.units[self.place]
        names = [route_name(part) for part in range(places.star)]
        found = read_all(work, names, EDGE, self.place, len(places.units))
        found = unique_edges(found["from"], found["to"])
        members = np.zeros(len(found), dtype=member_type(self.options.bands))
        members["row"], members["cluster"] = found["from"], found["to"]
        shingles = self._read(work, found["from"] - places.offsets[self.place], members)
        parts = spread(members["cluster"].view(np.uint64), places.verify)
        write_parts(work, gathered_name("members", unit), members, parts, places.verify)
        owners = np.repeat(parts, members["shingles"])
        write_parts(work, gathered_name("shingles", unit), shingles.view(SHINGLE), owners, places.verify)
        return {"candidates": len(members)}

    def _read(self, work: StoragePath, rows: NDArray[np.int64], members: NDArray[np.void]) -> NDArray[np.uint64]:
        """Fill in the members' band keys and numbers of shingles, in the order of rows; all their shingles."""
        found = [np.zeros(0, dtype=np.uint64)]
        if not len(rows):
            return found[0]
        starts = np.concatenate([[0], np.cumsum(self.blocks)])
        owners = np.searchsorted(starts, rows, side="right") - 1
        with open_file(work, self.texts) as stream:
            reader = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=[3], use_threads=False))
            for index in np.unique(owners).tolist():
                mine = np.flatnonzero(owners == index)
                texts = reader.get_batch(index).column(0).take(pa.array(rows[mine] - starts[index]))
                batch = DocumentBatch.of_column(texts)
                shingles = shingles_of(batch, self.options)
                members["keys"][mine] = band_keys(batch, self.options)
                members["shingles"][mine] = np.diff(shingles.bounds)
                found.append(shingles.hashes)
        return np.concatenate(found)


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Compare the candidates of some clusters, and decide which of them stay."""

    folder: ClassVar[str] = FOLDER
    part: int
    options: NearDuplicates
    places: Places

    @property
    def name(self) -> str:
        """The name of the task."""
        return f"verify-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write each document that goes, with the one that stays for it."""
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
        write_parts(work, decided_name(self.part), decided, self.places.unit_of(decided["from"]), len(self.places.units))
        sizes = np.bincount(np.unique(stays, return_counts=True)[1]) if len(stays) else np.zeros(0, dtype=int)
        return {
            "compared": int(counts[0]),
            "similar": int(counts[1]),
            "sizes": {str(size): number for size, number in enumerate(sizes.tolist()) if number and size > 1},
        }

    def _load(self, work: StoragePath) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
        """The members of the clusters of this part, and their shingles one behind the other."""
        units, mine = self.places.units, (self.part, self.part + 1)
        names = [gathered_name("members", unit) for unit in units]
        members, owner = read_owned(work, names, member_type(self.options.bands), mine, self.places.verify)
        bounds = np.searchsorted(owner, np.arange(len(units) + 1))
        every = int(members["shingles"].sum()) * SHINGLE.itemsize // MOST_SHINGLE_BYTES + 1

        def read(place: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
            counts = members["shingles"][bounds[place] : bounds[place + 1]]
            hashes = read_parts(work, gathered_name("shingles", units[place]), SHINGLE, mine, self.places.verify)["hash"]
            if every == 1:
                return hashes, counts
            kept = hashes % np.uint64(every) == 0
            return hashes[kept], np.bincount(np.repeat(np.arange(len(counts)), counts)[kept], minlength=len(counts))

        found = work.each(read, range(len(units)))
        hashes, members["shingles"] = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return members, hashes

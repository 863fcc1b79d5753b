"""Candidate near-duplicates: edges between documents that share a band, and their connected components (clusters).

    match    band records → edges from each document to the first one with an equal band key
    star     edges → edges to the smallest connected document, repeated until stable (large star and small star alternate)
    route    cluster of each document → the document's unit

Large and small star: Kiveris et al. 2014, Connected components in MapReduce and beyond. A document is its row in global order.
Each task reads, and holds in memory, only its part of the previous stage's files.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.dropped import not_dropped
from ropewalk.datapipe.dedup.near.intermediate import EDGE, FOLDER, SearchPlan, route_name, star_name, unique_edges
from ropewalk.datapipe.text.minhash.bands import BAND, BAND_PARTS, bands_name
from ropewalk.datapipe.text.parted import read_all, read_parts, spread, write_parts


def _star_edges(groups: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.void]:
    """Return an edge from each row to the first row of its group; groups, and rows within them, are ascending."""
    starts = np.concatenate([[True], groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, dtype=bool)
    heads = rows[np.flatnonzero(starts)][np.cumsum(starts) - 1] if len(groups) else rows
    other = heads != rows
    return unique_edges(rows[other], heads[other])


@dataclass(frozen=True, kw_only=True)
class Match:
    """Task: find documents that share a band, in one part of the band keys."""

    folder: ClassVar[str] = FOLDER
    part: int
    plan: SearchPlan

    @property
    def name(self) -> str:
        return f"match-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the edges; return their number."""
        plan = self.plan
        first = BAND_PARTS * self.part // plan.match
        last = max(BAND_PARTS * (self.part + 1) // plan.match, first + 1)
        pieces = max(plan.match // BAND_PARTS, 1)  # pieces of a file part, if a part is too large for a task

        def read(unit_and_offset: tuple[int, int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
            unit, offset = unit_and_offset
            records = read_parts(work, bands_name(unit), BAND, (first, last), BAND_PARTS)
            if pieces > 1:
                records = records[spread(records["key"], pieces) == self.part % pieces]
            local = records["row"].astype(np.int64)
            mask = not_dropped(work, FOLDER, unit, local) if len(local) else np.zeros(0, dtype=bool)
            return records["key"][mask], local[mask] + offset

        of_units = work.each(read, [*zip(plan.units, plan.offsets, strict=False)])
        key, row = (np.concatenate(columns) for columns in zip(*of_units, strict=True))
        order = np.lexsort((row, key))
        edges = _star_edges(key[order], row[order])
        _write_both_ways(work, star_name(0, self.part), edges, plan.star)
        return {"edges": len(edges)}


def _write_both_ways(work: StoragePath, name: str, edges: NDArray[np.void], num_parts: int) -> None:
    turned = np.empty(len(edges), dtype=EDGE)
    turned["from"], turned["to"] = edges["to"], edges["from"]
    both = np.concatenate([edges, turned])
    write_parts(work, name, both, spread(both["from"].view(np.uint64), num_parts), num_parts)


@dataclass(frozen=True, kw_only=True)
class Star:
    """Task: connect documents to smaller ones of their cluster: large star in odd stages, small star in even ones."""

    folder: ClassVar[str] = FOLDER
    stage: int
    part: int
    plan: SearchPlan
    sources: int  # number of files of the previous stage

    @property
    def name(self) -> str:
        return f"star-{self.stage:03d}-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the new edges; large star returns the number of documents that are not settled, small star 0."""
        names = [star_name(self.stage - 1, part) for part in range(self.sources)]
        edges = read_all(work, names, EDGE, self.part, self.plan.star)
        edges = unique_edges(edges["from"], edges["to"])
        source, target = edges["from"], edges["to"]
        starts = np.flatnonzero(np.concatenate([[True], source[1:] != source[:-1]])) if len(edges) else np.zeros(0, dtype=int)
        group = np.cumsum(np.concatenate([[0], source[1:] != source[:-1]])) if len(edges) else np.zeros(0, dtype=int)
        least = np.minimum(target[starts], source[starts])
        num_parts, out = self.plan.star, star_name(self.stage, self.part)
        if self.stage % 2:
            larger = target > source
            unsettled = _count_unsettled(source, target, group, len(starts))
            moved = unique_edges(target[larger], least[group[larger]])
            write_parts(work, out, moved, spread(moved["from"].view(np.uint64), num_parts), num_parts)
            return {"unsettled": unsettled}
        others = target != least[group]
        not_least = source[starts] != least
        moved = unique_edges(
            np.concatenate([target[others], source[starts][not_least]]), np.concatenate([least[group[others]], least[not_least]])
        )
        _write_both_ways(work, out, moved, num_parts)
        return {"unsettled": 0}


def _count_unsettled(source: NDArray[np.int64], target: NDArray[np.int64], group: NDArray[np.int64], groups: int) -> int:
    """Count documents with several smaller neighbours, or with a smaller and a larger one."""
    smaller = np.bincount(group[target < source], minlength=groups)
    larger = np.bincount(group[target > source], minlength=groups)
    return int(((smaller > 1) | ((smaller == 1) & (larger > 0))).sum())


@dataclass(frozen=True, kw_only=True)
class Route:
    """Task: write the cluster of each candidate, by unit."""

    folder: ClassVar[str] = FOLDER
    stage: int  # last stage of stars
    part: int
    plan: SearchPlan

    @property
    def name(self) -> str:
        return f"route-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write document and cluster of each candidate; return their number. The first of a cluster may occur twice."""
        names = [star_name(self.stage, part) for part in range(self.plan.star)]
        edges = read_all(work, names, EDGE, self.part, self.plan.star)
        first = np.unique(edges["to"])
        clusters = unique_edges(np.concatenate([edges["from"], first]), np.concatenate([edges["to"], first]))
        write_parts(work, route_name(self.part), clusters, self.plan.unit_of(clusters["from"]), len(self.plan.units))
        return {"documents": len(clusters)}

"""Which documents may be near-duplicates: edges between those that share a band, and the clusters that they make.

    match    records of bands → documents that share a band: an edge from each to the first of them
    star     edges → edges to the least document that is known to be connected, until all are (large and small star, in turn)
    route    each document's cluster of candidates, to the document's unit

Large and small star: Kiveris et al. 2014, Connected components in MapReduce and beyond. A document is its row in global order.
Each task reads its part of what the ones before wrote, and holds no more than that.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.dropped import still_there
from ropewalk.datapipe.dedup.near.places import EDGE, FOLDER, Places, route_name, star_name, unique_edges
from ropewalk.datapipe.text.minhash.bands import BAND, BAND_PARTS, bands_name
from ropewalk.datapipe.text.parted import read_all, read_parts, spread, write_parts


def _star_edges(groups: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[np.void]:
    """An edge from each row to the first row of its group; groups are ascending, rows within them too."""
    starts = np.concatenate([[True], groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, dtype=bool)
    heads = rows[np.flatnonzero(starts)][np.cumsum(starts) - 1] if len(groups) else rows
    other = heads != rows
    return unique_edges(rows[other], heads[other])


@dataclass(frozen=True, kw_only=True)
class Match:
    """Find documents that share a band, in one part of the keys."""

    folder: ClassVar[str] = FOLDER
    part: int
    places: Places

    @property
    def name(self) -> str:
        """The name of the task."""
        return f"match-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the edges; returns how many there are."""
        places = self.places
        first = BAND_PARTS * self.part // places.match
        last = max(BAND_PARTS * (self.part + 1) // places.match, first + 1)
        pieces = max(places.match // BAND_PARTS, 1)  # of one part of the files, where one of them is too much for a task

        def read(place: tuple[int, int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
            unit, offset = place
            records = read_parts(work, bands_name(unit), BAND, (first, last), BAND_PARTS)
            if pieces > 1:
                records = records[spread(records["key"], pieces) == self.part % pieces]
            local = records["row"].astype(np.int64)
            kept = still_there(work, FOLDER, unit, local) if len(local) else np.zeros(0, dtype=bool)
            return records["key"][kept], local[kept] + offset

        found = work.each(read, [*zip(places.units, places.offsets, strict=False)])
        key, row = (np.concatenate(columns) for columns in zip(*found, strict=True))
        order = np.lexsort((row, key))
        edges = _star_edges(key[order], row[order])
        _write_both_ways(work, star_name(0, self.part), edges, places.star)
        return {"edges": len(edges)}


def _write_both_ways(work: StoragePath, name: str, edges: NDArray[np.void], num_parts: int) -> None:
    turned = np.empty(len(edges), dtype=EDGE)
    turned["from"], turned["to"] = edges["to"], edges["from"]
    both = np.concatenate([edges, turned])
    write_parts(work, name, both, spread(both["from"].view(np.uint64), num_parts), num_parts)


@dataclass(frozen=True, kw_only=True)
class Star:
    """Bring documents nearer to the least one of their cluster: large star in odd stages, small star in even ones."""

    folder: ClassVar[str] = FOLDER
    stage: int
    part: int
    places: Places
    sources: int  # files that the stage before wrote

    @property
    def name(self) -> str:
        """The name of the task."""
        return f"star-{self.stage:03d}-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write the edges; returns how many documents do not yet have just one edge, to the least one. Small star: 0."""
        names = [star_name(self.stage - 1, part) for part in range(self.sources)]
        edges = read_all(work, names, EDGE, self.part, self.places.star)
        edges = unique_edges(edges["from"], edges["to"])
        source, target = edges["from"], edges["to"]
        starts = np.flatnonzero(np.concatenate([[True], source[1:] != source[:-1]])) if len(edges) else np.zeros(0, dtype=int)
        group = np.cumsum(np.concatenate([[0], source[1:] != source[:-1]])) if len(edges) else np.zeros(0, dtype=int)
        least = np.minimum(target[starts], source[starts])
        num_parts, out = self.places.star, star_name(self.stage, self.part)
        if self.stage % 2:
            larger = target > source
            unsettled = _unsettled(source, target, group, len(starts))
            moved = unique_edges(target[larger], least[group[larger]])
            write_parts(work, out, moved, spread(moved["from"].view(np.uint64), num_parts), num_parts)
            return {"unsettled": unsettled}
        others = target != least[group]
        own = source[starts] != least
        moved = unique_edges(
            np.concatenate([target[others], source[starts][own]]), np.concatenate([least[group[others]], least[own]])
        )
        _write_both_ways(work, out, moved, num_parts)
        return {"unsettled": 0}


def _unsettled(source: NDArray[np.int64], target: NDArray[np.int64], group: NDArray[np.int64], groups: int) -> int:
    """Documents with more than one smaller neighbour, or with a smaller one and a larger one."""
    smaller = np.bincount(group[target < source], minlength=groups)
    larger = np.bincount(group[target > source], minlength=groups)
    return int(((smaller > 1) | ((smaller == 1) & (larger > 0))).sum())


@dataclass(frozen=True, kw_only=True)
class Route:
    """Tell each unit which cluster of candidates its documents belong to."""

    folder: ClassVar[str] = FOLDER
    stage: int  # of the stars that settled all
    part: int
    places: Places

    @property
    def name(self) -> str:
        """The name of the task."""
        return f"route-{self.part:05d}"

    def run(self, work: StoragePath) -> dict[str, Any]:
        """Write document and cluster of each candidate; returns how many there are. A cluster's first one may be there twice."""
        names = [star_name(self.stage, part) for part in range(self.places.star)]
        edges = read_all(work, names, EDGE, self.part, self.places.star)
        first = np.unique(edges["to"])
        found = unique_edges(np.concatenate([edges["from"], first]), np.concatenate([edges["to"], first]))
        write_parts(work, route_name(self.part), found, self.places.unit_of(found["from"]), len(self.places.units))
        return {"documents": len(found)}

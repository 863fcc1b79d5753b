"""What the tasks of the search for near-duplicates leave for each other: names of files, their records, how they are cut."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLDER = "near"
EDGE = np.dtype([("from", "<i8"), ("to", "<i8")])
SHINGLE = np.dtype([("hash", "<u8")])


@dataclass(frozen=True, kw_only=True)
class Places:
    """What all tasks know: the units and the first row of each, and in how many parts stages are cut."""

    units: tuple[int, ...]
    offsets: tuple[int, ...]  # of each unit, and the end
    match: int
    star: int
    verify: int = 1

    def unit_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place of each row's unit among the units."""
        return np.searchsorted(np.array(self.offsets), rows, side="right") - 1


def star_name(stage: int, part: int) -> str:
    """The file of the edges that one task of a stage wrote; stage 0 is `match`."""
    return f"{FOLDER}/edges-{stage:03d}-{part:05d}"


def route_name(part: int) -> str:
    """The file of one task's documents and clusters, by unit."""
    return f"{FOLDER}/clusters-{part:05d}"


def member_type(bands: int) -> np.dtype[np.void]:
    """A candidate as `gather` writes it: row, cluster, number of shingles, band keys."""
    return np.dtype([("row", "<i8"), ("cluster", "<i8"), ("shingles", "<i8"), ("keys", "<u8", (bands,))])


def gathered_name(kind: str, unit: int) -> str:
    """The file of a unit's candidates (`members`) or of their shingles (`shingles`)."""
    return f"{FOLDER}/{kind}-{unit:06d}"


def decided_name(part: int) -> str:
    """The file of one task's decisions, by unit: document, and the one that stays for it."""
    return f"{FOLDER}/decided-{part:05d}"


def unique_edges(source: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.void]:
    """The different edges, ascending."""
    edges = np.empty(len(source), dtype=EDGE)
    order = np.lexsort((target, source))
    edges["from"], edges["to"] = source[order], target[order]
    new = np.ones(len(edges), dtype=bool)
    new[1:] = edges[1:] != edges[:-1]
    return edges[new]

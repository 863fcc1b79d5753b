"""File names, record layouts and partitioning of the intermediate files of near-duplicate search."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FOLDER = "near"
EDGE = np.dtype([("from", "<i8"), ("to", "<i8")])
SHINGLE = np.dtype([("hash", "<u8")])


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """Units, their first rows, and the number of parts of each stage; shared by all tasks."""

    units: tuple[int, ...]
    offsets: tuple[int, ...]  # first row of each unit, and the end
    match: int
    star: int
    verify: int = 1

    def unit_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(np.array(self.offsets), rows, side="right") - 1


def star_name(stage: int, part: int) -> str:
    """Path of the edges that one task of a stage wrote; stage 0 is `match`."""
    return f"{FOLDER}/edges-{stage:03d}-{part:05d}"


def route_name(part: int) -> str:
    """Path of the documents and clusters that one task wrote, by unit."""
    return f"{FOLDER}/clusters-{part:05d}"


def member_type(bands: int) -> np.dtype[np.void]:
    """Layout of a candidate as `gather` writes it: row, cluster, number of shingles, band keys."""
    return np.dtype([("row", "<i8"), ("cluster", "<i8"), ("shingles", "<i8"), ("keys", "<u8", (bands,))])


def gathered_name(kind: str, unit: int) -> str:
    """Path of a unit's candidates (`members`) or their shingles (`shingles`)."""
    return f"{FOLDER}/{kind}-{unit:06d}"


def decided_name(part: int) -> str:
    """Path of one task's decisions, by unit: a dropped document, and the one that is kept instead."""
    return f"{FOLDER}/decided-{part:05d}"


def unique_edges(source: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.void]:
    """Return the distinct edges, ascending."""
    edges = np.empty(len(source), dtype=EDGE)
    order = np.lexsort((target, source))
    edges["from"], edges["to"] = source[order], target[order]
    new = np.ones(len(edges), dtype=bool)
    new[1:] = edges[1:] != edges[:-1]
    return edges[new]

"""Cuts of a unit's documents: their file, and their application to texts."""

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath

FOLDER = "paragraphs"
CUT = np.dtype([("row", "<u4"), ("start", "<u4"), ("end", "<u4")])  # row: document of the unit; start, end: bytes of its text


def cuts_name(unit: int) -> str:
    """Path of a unit's cuts in the work area, ordered by document and position."""
    return f"{FOLDER}/cuts-{unit:06d}"


def read_cuts(work: StoragePath, unit: int) -> NDArray[np.void]:
    """Read the cuts of a unit."""
    return np.frombuffer(work.read(cuts_name(unit)), dtype=CUT)


def cut_sizes(work: StoragePath, unit: int, documents: int) -> NDArray[np.uint32]:
    """Return the number of bytes cut from each of the unit's documents."""
    cuts = read_cuts(work, unit)
    lengths = cuts["end"].astype(np.float64) - cuts["start"]
    return np.bincount(cuts["row"], weights=lengths, minlength=documents).astype(np.uint32)


def cut_text(text: str, cuts: NDArray[np.void]) -> str:
    """Remove the cuts from a text, and then newlines at its end."""
    if not len(cuts):
        return text
    raw, pieces, at = text.encode(), [], 0
    for start, end in zip(cuts["start"].tolist(), cuts["end"].tolist(), strict=True):
        pieces.append(raw[at:start])
        at = end
    return b"".join([*pieces, raw[at:]]).decode().rstrip("\r\n")

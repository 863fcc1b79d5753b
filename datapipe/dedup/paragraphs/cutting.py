"""The file of what is cut out of a unit's documents, and texts without it."""

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath

FOLDER = "paragraphs"
CUT = np.dtype([("row", "<u4"), ("start", "<u4"), ("end", "<u4")])  # a document of a unit; bytes of its text


def cuts_name(unit: int) -> str:
    """The file of a unit's cuts, below the work area: in the order of documents and places."""
    return f"{FOLDER}/cuts-{unit:06d}"


def read_cuts(work: StoragePath, unit: int) -> NDArray[np.void]:
    """The cuts of a unit."""
    return np.frombuffer(work.read(cuts_name(unit)), dtype=CUT)


def cut_sizes(work: StoragePath, unit: int, documents: int) -> NDArray[np.uint32]:
    """Of each document of a unit, which has so many, the bytes that are cut."""
    cuts = read_cuts(work, unit)
    lengths = cuts["end"].astype(np.float64) - cuts["start"]
    return np.bincount(cuts["row"], weights=lengths, minlength=documents).astype(np.uint32)


def cut_text(text: str, cuts: NDArray[np.void]) -> str:
    """A text without some pieces, and without the newlines that are left at its end."""
    if not len(cuts):
        return text
    raw, kept, at = text.encode(), [], 0
    for start, end in zip(cuts["start"].tolist(), cuts["end"].tolist(), strict=True):
        kept.append(raw[at:start])
        at = end
    return b"".join([*kept, raw[at:]]).decode().rstrip("\r\n")

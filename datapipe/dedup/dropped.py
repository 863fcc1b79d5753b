"""Which documents were dropped by earlier stages, for the tasks of a later one: a file of bits, one for each document."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath

Dropped = Callable[[slice], NDArray[np.bool_]]  # of documents in global order: which of them are dropped


def write_dropped(work: StoragePath, folder: str, units: Sequence[int], offsets: Sequence[int], dropped: Dropped) -> None:
    """Write which documents of each unit are dropped, unless an earlier call did."""
    present = set(work.names(folder))
    for unit, first, last in zip(units, offsets[:-1], offsets[1:], strict=True):
        if (name := _name(unit)) not in present:
            work.write(f"{folder}/{name}", bits_of(dropped(slice(first, last))))


def still_there(work: StoragePath, folder: str, unit: int, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """For each of some documents of a unit, given by their rows in it, whether it was not dropped."""
    return ~are_set(work.read(f"{folder}/{_name(unit)}"), rows)


def bits_of(values: NDArray[np.bool_]) -> bytes:
    """One bit for each value."""
    return np.packbits(values, bitorder="little").tobytes()


def are_set(bits: bytes, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Of each row whether its bit is set."""
    found: NDArray[np.bool_] = np.frombuffer(bits, dtype=np.uint8)[rows >> 3] >> (rows & 7).astype(np.uint8) & 1 == 1
    return found


def _name(unit: int) -> str:
    return f"dropped-{unit:06d}"

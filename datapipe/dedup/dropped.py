"""Documents dropped by earlier stages, as a file of bits per unit that later tasks read."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath

Dropped = Callable[[slice], NDArray[np.bool_]]  # maps a range of global rows to True for each dropped document


def write_dropped(work: StoragePath, folder: str, units: Sequence[int], offsets: Sequence[int], dropped: Dropped) -> None:
    """Write the dropped documents of each unit, unless an earlier call did."""
    present = set(work.names(folder))
    for unit, first, last in zip(units, offsets[:-1], offsets[1:], strict=True):
        if (name := _name(unit)) not in present:
            work.write(f"{folder}/{name}", bits_of(dropped(slice(first, last))))


def not_dropped(work: StoragePath, folder: str, unit: int, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return True for each of these rows of a unit whose document was not dropped."""
    return ~are_set(work.read(f"{folder}/{_name(unit)}"), rows)


def bits_of(values: NDArray[np.bool_]) -> bytes:
    """Pack booleans into bits."""
    return np.packbits(values, bitorder="little").tobytes()


def are_set(bits: bytes, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return True for each row whose bit is set."""
    result: NDArray[np.bool_] = np.frombuffer(bits, dtype=np.uint8)[rows >> 3] >> (rows & 7).astype(np.uint8) & 1 == 1
    return result


def _name(unit: int) -> str:
    return f"dropped-{unit:06d}"

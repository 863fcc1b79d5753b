"""Files of records in parts, so that each of the next stage's tasks reads its own part of every file: a shuffle on disk.

A file is the offsets of its parts (int64, one more than there are parts), then the records, part by part.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath

WORD = 8  # bytes of an offset


def write_parts(place: StoragePath, name: str, records: NDArray[np.void], parts: NDArray[np.int64], num_parts: int) -> None:
    """Write records, each to its part; within a part their order stays."""
    order = np.argsort(parts, kind="stable")
    counts = np.bincount(parts, minlength=num_parts)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")
    with place.create(name) as stream:
        stream.write(offsets.tobytes())
        stream.write(records[order].tobytes())


def read_parts(
    place: StoragePath, name: str, dtype: np.dtype[np.void], parts: tuple[int, int], num_parts: int
) -> NDArray[np.void]:
    """The records of the parts from the first of two numbers to before the other."""
    first, last = parts
    bounds = np.frombuffer(place.read(name, first * WORD, (last + 1) * WORD), dtype="<i8")
    if bounds[0] == bounds[-1]:
        return np.zeros(0, dtype=dtype)
    base, size = (num_parts + 1) * WORD, dtype.itemsize
    return np.frombuffer(place.read(name, base + int(bounds[0]) * size, base + int(bounds[-1]) * size), dtype=dtype)


def read_owned(
    place: StoragePath, names: Sequence[str], dtype: np.dtype[np.void], parts: tuple[int, int], num_parts: int
) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """What `read_parts` finds, of all files in their order, and the number of each record's file."""
    found = place.each(lambda name: read_parts(place, name, dtype, parts, num_parts), names)
    owner = np.repeat(np.arange(len(found)), [len(records) for records in found])
    return np.concatenate([np.zeros(0, dtype=dtype), *found]), owner


def read_all(place: StoragePath, names: Sequence[str], dtype: np.dtype[np.void], part: int, num_parts: int) -> NDArray[np.void]:
    """The records of one part, of all files in their order."""
    return read_owned(place, names, dtype, (part, part + 1), num_parts)[0]


def read_with_parts(
    place: StoragePath, name: str, dtype: np.dtype[np.void], num_parts: int
) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """All records of a file, and the part of each."""
    raw = place.read(name)
    base = (num_parts + 1) * WORD
    counts = np.diff(np.frombuffer(raw[:base], dtype="<i8"))
    return np.frombuffer(raw[base:], dtype=dtype), np.repeat(np.arange(num_parts), counts)


def spread(keys: NDArray[np.uint64], num_parts: int) -> NDArray[np.int64]:
    """A part for each key, whatever the keys are."""
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) * np.uint64(num_parts) >> np.uint64(32)).astype(np.int64)

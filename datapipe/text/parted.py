"""Partitioned record files: a shuffle on disk, in which each task of the next stage reads its partition of every file.

A file has the offsets of its parts (int64, one more than there are parts), then the records, part by part.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath

OFFSET_BYTES = 8


def write_parts(folder: StoragePath, name: str, records: NDArray[np.void], parts: NDArray[np.int64], num_parts: int) -> None:
    """Write records, each to its part; order within a part is preserved."""
    order = np.argsort(parts, kind="stable")
    counts = np.bincount(parts, minlength=num_parts)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype("<i8")
    with folder.create(name) as stream:
        stream.write(offsets.tobytes())
        stream.write(records[order].tobytes())


def read_parts(
    folder: StoragePath, name: str, dtype: np.dtype[np.void], parts: tuple[int, int], num_parts: int
) -> NDArray[np.void]:
    """Read the records of the parts [parts[0], parts[1])."""
    first, last = parts
    bounds = np.frombuffer(folder.read(name, first * OFFSET_BYTES, (last + 1) * OFFSET_BYTES), dtype="<i8")
    if bounds[0] == bounds[-1]:
        return np.zeros(0, dtype=dtype)
    base, size = (num_parts + 1) * OFFSET_BYTES, dtype.itemsize
    return np.frombuffer(folder.read(name, base + int(bounds[0]) * size, base + int(bounds[-1]) * size), dtype=dtype)


def read_with_file(
    folder: StoragePath, names: Sequence[str], dtype: np.dtype[np.void], parts: tuple[int, int], num_parts: int
) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Read these parts of all files, in order; return the records and the index of each record's file."""
    records = folder.each(lambda name: read_parts(folder, name, dtype, parts, num_parts), names)
    file = np.repeat(np.arange(len(records)), [len(of_file) for of_file in records])
    return np.concatenate([np.zeros(0, dtype=dtype), *records]), file


def read_all(folder: StoragePath, names: Sequence[str], dtype: np.dtype[np.void], part: int, num_parts: int) -> NDArray[np.void]:
    """Read one part of all files, in order."""
    return read_with_file(folder, names, dtype, (part, part + 1), num_parts)[0]


def read_with_parts(
    folder: StoragePath, name: str, dtype: np.dtype[np.void], num_parts: int
) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """Read all records of a file, and the part of each."""
    raw = folder.read(name)
    base = (num_parts + 1) * OFFSET_BYTES
    counts = np.diff(np.frombuffer(raw[:base], dtype="<i8"))
    return np.frombuffer(raw[base:], dtype=dtype), np.repeat(np.arange(num_parts), counts)


def spread(keys: NDArray[np.uint64], num_parts: int) -> NDArray[np.int64]:
    """Assign a part to each key, evenly for any distribution of keys."""
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(32)) * np.uint64(num_parts) >> np.uint64(32)).astype(np.int64)

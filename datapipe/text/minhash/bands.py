"""File of a unit's band keys, partitioned by their first bits so that equal keys of all units can be read together."""

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.text.parted import write_parts

BAND_PARTS = 4096
BAND = np.dtype([("key", "<u8"), ("row", "<u4")])  # row: a document of the unit


def bands_name(unit: int) -> str:
    """Path of a unit's band keys in the work area."""
    return f"units/{unit:06d}.bands"


def write_bands(work: StoragePath, unit: int, keys: NDArray[np.uint64]) -> None:
    """Write the band keys, [documents, bands], of a unit's documents."""
    rows, bands = np.nonzero(keys)
    records = np.empty(len(rows), dtype=BAND)
    records["key"], records["row"] = keys[rows, bands], rows
    parts = (records["key"] >> np.uint64(52)).astype(np.int64)
    write_parts(work, bands_name(unit), records, parts, BAND_PARTS)

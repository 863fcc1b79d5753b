"""The hashes by which texts and ids are compared over all documents: files of a unit that are parted by hash."""

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.text.parted import spread, write_parts

FAN_OUT = 256  # parts of a file
TEXT = np.dtype([("hash", "<u8", (2,)), ("row", "<u4")])  # row: of a document in its unit
ID = np.dtype([("hash", "<u8", (2,)), ("text", "u1", (16,)), ("row", "<u4")])  # text: the digest of the document's text


def text_hashes_name(unit: int) -> str:
    """The file of the hashes of a unit's texts, below the work area."""
    return f"units/{unit:06d}.texts.hashes"


def ids_name(unit: int) -> str:
    """The file of the hashes of a unit's ids, of the documents whose record has one."""
    return f"units/{unit:06d}.ids.hashes"


def unnamed_name(unit: int) -> str:
    """The file of the hashes of the ids that a unit's other documents get."""
    return f"units/{unit:06d}.unnamed.hashes"


def write_text_hashes(work: StoragePath, unit: int, digests: NDArray[np.uint8]) -> None:
    """Write the hashes of all texts of a unit; `digests` is [documents, 16]."""
    records = np.empty(len(digests), dtype=TEXT)
    records["hash"], records["row"] = hashes_of(digests), np.arange(len(digests))
    write_parts(work, text_hashes_name(unit), records, spread(records["hash"][:, 0], FAN_OUT), FAN_OUT)


def write_ids(
    work: StoragePath, name: str, hashes: NDArray[np.uint64], digests: NDArray[np.uint8], rows: NDArray[np.int64]
) -> None:
    """Write the hashes of ids [n, 2], the digests [n, 16] of their documents' texts, and their rows in the unit."""
    records = np.empty(len(rows), dtype=ID)
    records["hash"], records["text"], records["row"] = hashes, digests, rows
    write_parts(work, name, records, spread(records["hash"][:, 0], FAN_OUT), FAN_OUT)


def hashes_of(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Digests [n, 16] as numbers [n, 2]."""
    return np.ascontiguousarray(digests).view(">u8").reshape(-1, 2).astype(np.uint64)

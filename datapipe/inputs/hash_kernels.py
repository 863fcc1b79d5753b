"""Compiled normalization of texts: characters by a table, runs of white space as one blank."""

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.text.kernel import kernel
from ropewalk.datapipe.text.kernels import code_point


@kernel
def normalize(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    indices: NDArray[np.int32],
    pool: NDArray[np.uint8],
    out: NDArray[np.uint8],
    ends: NDArray[np.int64],
) -> None:
    """Write the concatenated normal forms to `out` and their ends to `ends`; an end is negative if the table does not suffice.

    `indices` has, for each character beyond ASCII, the index in `pool` of the length and bytes of its form; 0: white space;
    1: no form, since it depends on neighbours. No character gets longer. ASCII white space: 9 to 13, 28 to 32.
    """
    at = np.int64(0)
    for text in range(len(offsets) - 1):
        begin, gap, complete = at, False, True
        position, end = offsets[text], offsets[text + 1]
        while position < end:
            byte = data[position]
            if byte < 128:
                position += 1
                if byte <= 32 and (byte == 32 or 9 <= byte <= 13 or byte >= 28):
                    gap = bool(at > begin)
                    continue
                if gap:
                    out[at] = 32
                    at += 1
                    gap = False
                out[at] = byte + 32 if 65 <= byte <= 90 else byte
                at += 1
                continue
            code, length = code_point(data, position)
            position += length
            entry = indices[code] if code < len(indices) else np.int32(1)
            if entry == 0:
                gap = bool(at > begin)
                continue
            if entry == 1:
                complete = False
                break
            if gap:
                out[at] = 32
                at += 1
                gap = False
            for step in range(pool[entry]):
                out[at] = pool[entry + 1 + step]
                at += 1
        if not complete:
            at = begin
        ends[text] = at if complete else -1 - at

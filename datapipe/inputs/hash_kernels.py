"""The normal form of ASCII texts in machine code: small letters, runs of white space as one blank."""

import numpy as np
from numpy.typing import NDArray

from datapipe.kernel import kernel


@kernel
def normalise_ascii(data: NDArray[np.uint8], offsets: NDArray[np.int64], out: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
    """Write the normal form of each ASCII text behind the one before; `ends` says where, negative if it is not ASCII.

    White space is what str.split takes for it: 9 to 13, 28 to 32.
    """
    at = 0
    for text in range(len(offsets) - 1):
        begin = at
        gap, plain = False, True
        for place in range(offsets[text], offsets[text + 1]):
            byte = data[place]
            if byte >= 128:
                plain = False
                break
            if byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31:
                gap = at > begin
                continue
            if gap:
                out[at] = 32
                at += 1
                gap = False
            out[at] = byte + 32 if 65 <= byte <= 90 else byte
            at += 1
        if not plain:
            at = begin
        ends[text] = at if plain else -1 - at

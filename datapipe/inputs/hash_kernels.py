"""The normal form of texts in machine code: characters as a table has them, runs of white space as one blank."""

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.text.kernel import kernel
from ropewalk.datapipe.text.kernels import code_point


@kernel
def normalise(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    places: NDArray[np.int32],
    pool: NDArray[np.uint8],
    out: NDArray[np.uint8],
    ends: NDArray[np.int64],
) -> None:
    """Write the normal form of each text behind the one before; `ends` says where, negative where the table does not suffice.

    Of a character that is not ASCII, `places` has the place in `pool` of the number of its bytes and of these; 0: white space;
    1: none, as what becomes of it depends on others. No character gets longer. White space of ASCII: 9 to 13, 28 to 32.
    """
    at = np.int64(0)
    for text in range(len(offsets) - 1):
        begin, gap, known = at, False, True
        place, end = offsets[text], offsets[text + 1]
        while place < end:
            byte = data[place]
            if byte < 128:
                place += 1
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
            code, length = code_point(data, place)
            place += length
            entry = places[code] if code < len(places) else np.int32(1)
            if entry == 0:
                gap = bool(at > begin)
                continue
            if entry == 1:
                known = False
                break
            if gap:
                out[at] = 32
                at += 1
                gap = False
            for step in range(pool[entry]):
                out[at] = pool[entry + 1 + step]
                at += 1
        if not known:
            at = begin
        ends[text] = at if known else -1 - at

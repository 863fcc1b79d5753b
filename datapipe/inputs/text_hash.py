"""The hash by which two documents count as the same text: NFKC, lower case, runs of white space as one blank."""

import unicodedata
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from ropewalk.datapipe.inputs.hash_kernels import normalise
from ropewalk.datapipe.text.document_batch import DocumentBatch

# where most characters are that are written: those of other scripts, and of Han, are looked up by Python
TABLED = ((0x80, 0x370), (0x370, 0x600), (0x1E00, 0x2C00), (0x3000, 0x3400), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xFF00, 0xFFF0))
EMOJI = (0x1F000, 0x1FB00)
WHITE_SPACE, DEPENDS = 0, 1  # entries of the table


def normalised(text: str) -> bytes:
    """The form in which two documents count as equal."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).encode()


def text_hashes(batch: DocumentBatch) -> list[bytes]:
    """XXH3-128 of the normal form of each text; a Python string is made only of texts with characters that change others."""
    offsets = batch.offsets - batch.offsets[0]
    data = batch.data[batch.offsets[0] : batch.offsets[-1]]
    out, ends = np.empty(len(data), np.uint8), np.zeros(len(batch), np.int64)
    normalise(data, offsets, *_table(), out, ends)
    hashes: list[bytes] = []
    begin = 0
    for index, end in enumerate(ends.tolist()):
        if end < 0:
            text = data[offsets[index] : offsets[index + 1]].tobytes().decode()
            hashes.append(xxhash.xxh3_128_digest(normalised(text)))
        else:
            hashes.append(xxhash.xxh3_128_digest(out[begin:end].data))
            begin = end
    return hashes


@cache
def _table() -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The normal form of each character that no other changes: see `hash_kernels.normalise`."""
    places = np.full(EMOJI[1], DEPENDS, np.int32)
    pool = bytearray(b"\0\0")
    for first, end in (*TABLED, EMOJI):
        for code in range(first, end):
            found = _alone(chr(code))
            if found is None:
                continue
            places[code] = len(pool) if found else WHITE_SPACE
            if found:
                pool += bytes([len(found)]) + found
    return places, np.frombuffer(bytes(pool), np.uint8)


def _alone(character: str) -> bytes | None:
    """The normal form of a character, empty for white space; None where it depends on its neighbours, or gets longer.

    A mark may join the letter before it, as may a vowel or an end of a Korean syllable; how a capital sigma is written small
    depends on whether it ends a word.
    """
    form = unicodedata.normalize("NFKC", character)
    if form.isspace():
        return b"" if len(form) == 1 else None
    joins = any(unicodedata.category(one)[0] == "M" or 0x1100 <= ord(one) <= 0x11FF for one in form)
    if joins or "\u03a3" in form or any(map(str.isspace, form)):
        return None
    raw = form.lower().encode()
    return raw if len(raw) <= len(character.encode()) else None

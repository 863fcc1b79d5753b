"""Hash of the normal form of a text, by which documents count as equal: NFKC, lower case, runs of white space as one blank."""

import unicodedata
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from ropewalk.datapipe.inputs.hash_kernels import normalize
from ropewalk.datapipe.text.document_batch import DocumentBatch

# ranges of the most frequent characters; others are normalized by Python
TABLED = ((0x80, 0x370), (0x370, 0x600), (0x1E00, 0x2C00), (0x3000, 0x3400), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xFF00, 0xFFF0))
EMOJI = (0x1F000, 0x1FB00)
WHITE_SPACE, DEPENDS = 0, 1  # entries of the table


def normal_form(text: str) -> bytes:
    """Return the form in which two documents are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).encode()


def text_hashes(batch: DocumentBatch) -> list[bytes]:
    """Return the XXH3-128 of the normal form of each text; only texts outside the table become Python strings."""
    offsets = batch.offsets - batch.offsets[0]
    data = batch.data[batch.offsets[0] : batch.offsets[-1]]
    out, ends = np.empty(len(data), np.uint8), np.zeros(len(batch), np.int64)
    normalize(data, offsets, *_table(), out, ends)
    hashes: list[bytes] = []
    begin = 0
    for index, end in enumerate(ends.tolist()):
        if end < 0:
            text = data[offsets[index] : offsets[index + 1]].tobytes().decode()
            hashes.append(xxhash.xxh3_128_digest(normal_form(text)))
        else:
            hashes.append(xxhash.xxh3_128_digest(out[begin:end].data))
            begin = end
    return hashes


@cache
def _table() -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Build the table of normal forms that do not depend on neighbouring characters: see `hash_kernels.normalize`."""
    indices = np.full(EMOJI[1], DEPENDS, np.int32)
    pool = bytearray(b"\0\0")
    for first, end in (*TABLED, EMOJI):
        for code in range(first, end):
            form = _independent_form(chr(code))
            if form is None:
                continue
            indices[code] = len(pool) if form else WHITE_SPACE
            if form:
                pool += bytes([len(form)]) + form
    return indices, np.frombuffer(bytes(pool), np.uint8)


def _independent_form(character: str) -> bytes | None:
    """Return the normal form of a character, empty for white space; None if it depends on its neighbours or gets longer.

    A mark may combine with the letter before it, as may the vowel or end of a Korean syllable; the lower case of a capital
    sigma depends on its position in the word.
    """
    form = unicodedata.normalize("NFKC", character)
    if form.isspace():
        return b"" if len(form) == 1 else None
    joins = any(unicodedata.category(char)[0] == "M" or 0x1100 <= ord(char) <= 0x11FF for char in form)
    if joins or "\u03a3" in form or any(map(str.isspace, form)):
        return None
    raw = form.lower().encode()
    return raw if len(raw) <= len(character.encode()) else None

"""The hash by which two documents count as the same text: NFKC, lower case, runs of white space as one blank."""

import unicodedata

import numpy as np
import xxhash

from datapipe.document_batch import DocumentBatch
from datapipe.inputs.hash_kernels import normalise_ascii


def normalised(text: str) -> bytes:
    """The form in which two documents count as equal."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).encode()


def text_hashes(batch: DocumentBatch) -> list[bytes]:
    """XXH3-128 of the normal form of each text; of ASCII texts without a Python string."""
    offsets = batch.offsets - batch.offsets[0]
    data = batch.data[batch.offsets[0] : batch.offsets[-1]]
    out, ends = np.empty(len(data), np.uint8), np.zeros(len(batch), np.int64)
    normalise_ascii(data, offsets, out, ends)
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

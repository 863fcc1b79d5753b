"""Replace personal data by placeholders, and count it by kind."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.filters.filter import Verdict
from ropewalk.datapipe.filters.privacy.detect import KINDS, find_in
from ropewalk.datapipe.filters.privacy.filter import Kind, PersonalData
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.datapipe.text.document_batch import DocumentBatch


def placeholder(kind: Kind) -> str:
    """Return the placeholder of a kind: <EMAIL>, <PHONE>, <IP>, <CARD>, <IBAN>, <NATIONAL_ID>."""
    return f"<{kind.upper()}>"


def replace(batch: TextBatch, kinds: Iterable[Kind] = KINDS) -> tuple[TextBatch, Counter[Kind]]:
    """Return the texts with placeholders and the number of replacements by kind; the batch itself if there are none."""
    counts: Counter[Kind] = Counter()
    pieces: list[NDArray[np.uint8]] = []
    grown = np.zeros(len(batch), np.int64)  # bytes that each text gains
    at = 0
    for text, (kind, start, end) in find_in(batch, kinds):
        mark = np.frombuffer(placeholder(kind).encode(), np.uint8)
        pieces += [batch.data[at:start], mark]
        grown[text] += len(mark) - (end - start)
        counts[kind] += 1
        at = end
    if not pieces:
        return batch, counts
    pieces.append(batch.data[at:])
    offsets = batch.offsets.copy()
    offsets[1:] += np.cumsum(grown)
    return TextBatch(data=np.concatenate(pieces), offsets=offsets), counts


def judge(options: PersonalData, batch: DocumentBatch) -> Verdict:
    """Replace personal data in a batch; no document is dropped."""
    texts, counts = replace(TextBatch.of_documents(batch), options.replace)
    codes = np.zeros(len(batch), np.int64)
    return Verdict((), codes, texts.arrow() if counts else None, {str(kind): count for kind, count in counts.items()})

"""Personal data replaced by placeholders that say what stood there, and counted."""

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
    """What stands in the place of personal data: <EMAIL>, <PHONE>, <IP>, <CARD>, <IBAN>, <NATIONAL_ID>."""
    return f"<{kind.upper()}>"


def replace(batch: TextBatch, kinds: Iterable[Kind] = KINDS) -> tuple[TextBatch, Counter[Kind]]:
    """The texts with placeholders, and how often each kind was replaced; the batch itself where there is nothing."""
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
    """Every document stays; the texts are given only where there is something to replace."""
    texts, counts = replace(TextBatch.of_documents(batch), options.replace)
    kept = np.zeros(len(batch), np.int64)
    return Verdict((), kept, texts.arrow() if counts else None, {str(kind): count for kind, count in counts.items()})

"""The verdict of the filter `pii` over a batch."""

import numpy as np

from ropewalk.datapipe.filters.filter import Verdict
from ropewalk.datapipe.filters.privacy.filter import PersonalData
from ropewalk.datapipe.filters.privacy.replace import replace
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.datapipe.text.document_batch import DocumentBatch


def judge(options: PersonalData, batch: DocumentBatch) -> Verdict:
    """Every document stays; the texts are given only where there is something to replace."""
    texts, counts = replace(TextBatch.of_documents(batch), options.replace)
    kept = np.zeros(len(batch), np.int64)
    return Verdict((), kept, texts.arrow() if counts else None, {str(kind): count for kind, count in counts.items()})

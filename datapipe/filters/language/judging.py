"""The verdict of the filter `language` over a batch."""

from collections import Counter

import numpy as np

from ropewalk.datapipe.filters.filter import Verdict
from ropewalk.datapipe.filters.language.filter import Language
from ropewalk.datapipe.filters.language.model import NO_LANGUAGE, UNKNOWN, identify, known_languages
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.datapipe.text.document_batch import DocumentBatch


def labels(options: Language, batch: DocumentBatch) -> list[str]:
    """The language of each document, `und` for what is none."""
    found = identify(TextBatch.of_documents(batch))
    unknown = found.confidence < options.min_confidence
    if options.code:
        unknown |= found.code
    named = [found.names[label] for label in found.label.tolist()]
    return [UNKNOWN if out or name == NO_LANGUAGE else name for out, name in zip(unknown.tolist(), named, strict=True)]


def judge(options: Language, batch: DocumentBatch) -> Verdict:
    """The reason is the language; what is kept is counted by language."""
    names = labels(options, batch)
    wanted = {*options.keep} if options.keep else {*known_languages()}
    reasons = tuple(sorted({*names} - wanted))
    number = {name: place for place, name in enumerate(reasons, 1)}
    codes = np.array([number.get(name, 0) for name in names], np.int64)
    return Verdict(reasons, codes, counts=dict(Counter(name for name in names if name in wanted)), columns={"language": names})

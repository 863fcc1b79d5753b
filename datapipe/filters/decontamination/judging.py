"""Apply the filter `decontaminate` to a batch."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np

from ropewalk.datapipe.filters.decontamination.filter import Decontaminate
from ropewalk.datapipe.filters.decontamination.index import NgramIndex
from ropewalk.datapipe.filters.decontamination.items import evaluation_files, read_items
from ropewalk.datapipe.filters.filter import Verdict
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.datapipe.text.document_batch import DocumentBatch


@dataclass(frozen=True)
class EvaluationSets:
    """Index of all items of the evaluation files, with the name and file of each item."""

    index: NgramIndex
    names: tuple[str, ...]
    files: tuple[str, ...]


@lru_cache(maxsize=2)
def evaluation_sets(against: tuple[str, ...], ngram: int) -> EvaluationSets:
    """Read and index the evaluation files, once per process."""
    items = list(read_items(evaluation_files(against)))
    index = NgramIndex.build((item.texts for item in items), ngram)
    return EvaluationSets(index, tuple(item.name for item in items), tuple(item.file for item in items))


def judge(options: Decontaminate, batch: DocumentBatch) -> Verdict:
    """Drop documents that overlap with an item; the reason is the file of the first such item, without its ending."""
    sets = evaluation_sets(options.against, options.ngram)
    reasons = tuple(dict.fromkeys(map(_stem, sets.files)))
    number = {name: index for index, name in enumerate(reasons, 1)}
    codes = np.zeros(len(batch), np.int64)
    for overlap in sets.index.overlaps(TextBatch.of_documents(batch), first_only=True):
        codes[overlap.text] = number[_stem(sets.files[overlap.item])]
    return Verdict(reasons, codes)


def _stem(file: str) -> str:
    return PurePosixPath(file).name.split(".")[0] or file

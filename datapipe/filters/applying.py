"""Apply filters to a batch, one after another, each to what the ones before it left."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.errors import DataError
from ropewalk.datapipe.filters.filter import Filter, Verdict
from ropewalk.datapipe.text.document import Rejection
from ropewalk.datapipe.text.document_batch import DocumentBatch


@dataclass
class Filtered:
    """What filters made of documents: those that are left, the rejections of the others, and what else was counted."""

    batch: DocumentBatch
    rejections: list[Rejection] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def apply_filters(filters: Mapping[str, Filter], batch: DocumentBatch) -> Filtered:
    """Apply all filters; a document that one drops is rejected as `FILTER.REASON`. Raises DataError if a filter fails."""
    result = Filtered(batch)
    for name, one in filters.items():
        if not len(result.batch):
            break
        verdict = _judge(name, one, result.batch)
        codes = _codes(name, verdict, len(result.batch))
        dropped = np.flatnonzero(codes)
        reasons = [f"{name}.{verdict.reasons[code - 1]}" for code in codes[dropped].tolist()]
        result.rejections += result.batch.rejections(dropped, reasons)
        if verdict.texts is not None:
            result.batch = result.batch.with_texts(verdict.texts)
        result.batch = result.batch.with_columns(verdict.columns).keep(codes == 0)
        result.counts.update({f"{name}.{what}": count for what, count in verdict.counts.items()})
    return result


def _judge(name: str, one: Filter, batch: DocumentBatch) -> Verdict:
    try:
        return one.judge(batch)
    except Exception as error:
        for row in range(len(batch)):  # which document it is, found one by one
            document = DocumentBatch(batch.records.slice(row, 1))
            try:
                one.judge(document)
            except Exception as own:
                known, line, source = (document.column(column)[0] for column in ("id", "line", "source"))
                raise _failed(name, f"document {known or f'of line {line}'} of {source}", own) from own
        raise _failed(name, f"a batch of {len(batch)} documents", error) from error


def _failed(name: str, where: str, error: Exception) -> DataError:
    what = f"{type(error).__name__}: {error}"
    return DataError(f"filter {name} failed at {where}: {what}; correct it, or take it out of filters")


def _codes(name: str, verdict: Verdict, documents: int) -> NDArray[np.int64]:
    """A number for each document. Raises DataError for a verdict of another batch, or with numbers that no reason has."""
    codes = np.asarray(verdict.codes, dtype=np.int64)
    texts = documents if verdict.texts is None else len(verdict.texts)
    if codes.shape != (documents,) or texts != documents:
        raise DataError(f"filter {name}: judged {len(codes)} documents and gave {texts} texts, of {documents}; correct it")
    if documents and (codes.min() < 0 or codes.max() > len(verdict.reasons)):
        raise DataError(f"filter {name}: gave reason number {codes.max()}, has {len(verdict.reasons)}; correct it")
    return codes

"""Apply filters to a batch, one after another, each to the documents that the previous ones left."""

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
    """Result of filters: remaining documents, rejections of the others, and further counts."""

    batch: DocumentBatch
    rejections: list[Rejection] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def apply_filters(filters: Mapping[str, Filter], batch: DocumentBatch) -> Filtered:
    """Apply all filters; a document that one drops is rejected as `FILTER.REASON`. Raises DataError if a filter fails."""
    result = Filtered(batch)
    for name, rule in filters.items():
        if not len(result.batch):
            break
        verdict = _judge(name, rule, result.batch)
        codes = _codes(name, verdict, len(result.batch))
        dropped = np.flatnonzero(codes)
        reasons = [f"{name}.{verdict.reasons[code - 1]}" for code in codes[dropped].tolist()]
        result.rejections += result.batch.rejections(dropped, reasons)
        if verdict.texts is not None:
            result.batch = result.batch.with_texts(verdict.texts)
        result.batch = result.batch.with_columns(verdict.columns).keep(codes == 0)
        result.counts.update({f"{name}.{what}": count for what, count in verdict.counts.items()})
    return result


def _judge(name: str, rule: Filter, batch: DocumentBatch) -> Verdict:
    try:
        return rule.judge(batch)
    except Exception as error:
        for row in range(len(batch)):  # find the document that causes the error
            document = DocumentBatch(batch.records.slice(row, 1))
            try:
                rule.judge(document)
            except Exception as cause:
                id_, line, source = (document.column(column)[0] for column in ("id", "line", "source"))
                raise _error(name, f"document {id_ or f'at line {line}'} of {source}", cause) from cause
        raise _error(name, f"a batch of {len(batch)} documents", error) from error


def _error(name: str, where: str, error: Exception) -> DataError:
    what = f"{type(error).__name__}: {error}"
    return DataError(f"filter {name} failed for {where}: {what}; fix the filter or remove it from `filters`")


def _codes(name: str, verdict: Verdict, documents: int) -> NDArray[np.int64]:
    """Return the reason number of each document. Raises DataError if the verdict does not fit the batch or its reasons."""
    codes = np.asarray(verdict.codes, dtype=np.int64)
    texts = documents if verdict.texts is None else len(verdict.texts)
    if codes.shape != (documents,) or texts != documents:
        raise DataError(
            f"filter {name}: returned {len(codes)} verdicts and {texts} texts for {documents} documents; fix the filter"
        )
    if documents and (codes.min() < 0 or codes.max() > len(verdict.reasons)):
        raise DataError(
            f"filter {name}: returned reason number {codes.max()}, but has {len(verdict.reasons)} reasons; fix the filter"
        )
    return codes

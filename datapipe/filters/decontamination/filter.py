"""The filter `decontaminate`: drop documents that contain items of an evaluation set."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from ropewalk.cluster.config import DataPath
from ropewalk.datapipe.filters.filter import Filter, Verdict
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Decontaminate(Filter):
    """Drop documents that share `ngram` consecutive words, of which one may differ, with an evaluation item."""

    against: Annotated[tuple[DataPath, ...], BeforeValidator(_one_or_many)] = Field(
        min_length=1,
        description="files, directories or globs of evaluation items: .jsonl[.gz|.zst], .json, .csv, .parquet, text; an item is"
        " each string of a record with 8 words or more (all strings joined if none has as many), or each line of a text file",
    )
    ngram: int = Field(default=13, ge=5, le=64, description="number of consecutive words that count as an overlap")

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """Return the evaluation file as the reason for each document that overlaps with one of its items."""
        verdict: Verdict = kernels("ropewalk.datapipe.filters.decontamination.index").judge(self, batch)
        return verdict

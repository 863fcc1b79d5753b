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
    """Drop documents that have so many words in a row of which at most one differs from an evaluation item's."""

    against: Annotated[tuple[DataPath, ...], BeforeValidator(_one_or_many)] = Field(
        min_length=1,
        description="files of evaluation items, directories or globs: .jsonl[.gz|.zst], .json, .csv, .parquet; each string of a"
        " record of 8 words or more is looked for, all together where none has so many; of text each line",
    )
    ngram: int = Field(default=13, ge=5, le=64, description="words in a row that count as an overlap")

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The name of the evaluation file as reason, and which item it is."""
        verdict: Verdict = kernels("ropewalk.datapipe.filters.decontamination.judging").judge(self, batch)
        return verdict

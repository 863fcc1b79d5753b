"""The filter `decontaminate`: drop documents that contain items of an evaluation set."""

from typing import ClassVar

from pydantic import Field

from ropewalk.cluster.input_paths import DataPaths
from ropewalk.datapipe.filters.filter import CompiledFilter


class Decontaminate(CompiledFilter):
    """Drop documents that share `ngram` consecutive words, of which one may differ, with an evaluation item."""

    judged_by: ClassVar[str] = "ropewalk.datapipe.filters.decontamination.index:judge"
    against: DataPaths = Field(
        min_length=1,
        description="files, directories or globs of evaluation items: .jsonl[.gz|.zst], .json, .csv, .parquet, text; an item is"
        " each string of a record with 8 words or more (all strings joined if none has as many), or each line of a text file",
    )
    ngram: int = Field(default=13, ge=5, le=64, description="number of consecutive words that count as an overlap")

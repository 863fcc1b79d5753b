"""The filter `min_words`: drop documents with few words."""

from typing import TYPE_CHECKING

from pydantic import Field

from ropewalk.datapipe.filters.filter import Filter, Verdict

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch


class MinWords(Filter):
    """Drop documents with fewer words than this, as separated by white space."""

    words: int = Field(default=50, ge=1, description="minimum number of words")

    def judge(self, batch: "DocumentBatch") -> Verdict:
        first = batch.words.first
        return Verdict(("too_few",), (first[1:] - first[:-1] < self.words).astype("uint8"))

"""The filter `c4`: the rules of Raffel et al. 2020 (arXiv 1910.10683), section 2.2, in the order of their published code.

Lines are judged one by one and the text goes on without those that are dropped; then the document is judged. The rules of
documents look at lines that were not dropped before, as the published code does; the paper speaks of the page. Sentences are
what ends with a mark before white space, for the paper's splitter is a trained model. There is no list of bad words.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from ropewalk.datapipe.filters.filter import Filter, Verdict
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    from ropewalk.datapipe.document_batch import DocumentBatch

JUDGING = "ropewalk.datapipe.filters.judging"


class C4(Filter):
    """Keep only the lines that look like sentences; drop documents of few of them, with curly brackets or filler text."""

    max_word_length: int | None = Field(default=1000, ge=1, description="drop a line with a longer word; null: off")
    citations: bool = Field(default=True, description="take [1], [edit] and [citation needed] out of lines")
    end_marks: str | None = Field(
        default=".?!\"'", description="drop a line that ends with none of these, or with ...; null: off"
    )
    min_words_per_line: int | None = Field(default=3, ge=0, description="drop a line of fewer words; null: off")
    lorem_ipsum: bool = Field(default=True, description="drop a document with `lorem ipsum` in a line")
    javascript: bool = Field(default=True, description="drop a line with `javascript`")
    curly_bracket: bool = Field(default=True, description="drop a document with { in a line")
    policy: bool = Field(default=True, description="drop a line about cookies, privacy or terms of use")
    min_sentences: int | None = Field(default=5, ge=0, description="drop a document of fewer sentences; null: off")

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The first rule that drops each document, and the texts without the lines that are dropped."""
        verdict: Verdict = kernels(JUDGING).c4(self, batch)
        return verdict

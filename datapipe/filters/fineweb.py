"""The filter `fineweb`: the rules of Penedo et al. 2024 (arXiv 2406.17557), section 3.6.

The defaults are the paper's; its published code drops from 0.01 of characters in repeated lines on, not from 0.1, and has the
rule of newlines, which the paper does not.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ropewalk.datapipe.filters.filter import WORDS, Filter, Verdict, WordKind
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    from ropewalk.datapipe.document_batch import DocumentBatch

JUDGING = "ropewalk.datapipe.filters.judging"
Share = Annotated[float, Field(ge=0, le=1)] | None


class FineWeb(Filter):
    """Drop documents that are lists rather than text: few lines end a sentence, lines are short or repeat themselves."""

    min_punctuated_lines: Share = Field(default=0.12, description="least share of lines that end a sentence; null: off")
    max_short_lines: Share = Field(default=0.67, description="greatest share of short lines; null: off")
    short_line_length: int = Field(default=30, ge=0, description="a line is short with at most so many characters")
    max_repeated_line_characters: Share = Field(
        default=0.1, description="greatest share of characters in repeated lines; null: off"
    )
    words: WordKind = WORDS
    max_newlines_per_word: float | None = Field(default=0.3, ge=0, description="most newlines a word; null: off")

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The first rule that drops each document."""
        verdict: Verdict = kernels(JUDGING).fineweb(self, batch)
        return verdict

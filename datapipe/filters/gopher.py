"""The filters `gopher_quality` and `gopher_repetition`: the rules of Rae et al. 2021 (arXiv 2112.11446), section A.1.1, table A1.

A rule's name is the name of its threshold; null switches it off. The paper does not say what a word is, nor whether the first
of equal n-grams counts as a duplicate: here it does not, and words are what white space separates, or English tokens.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ropewalk.datapipe.filters.filter import WORDS, Filter, Verdict, WordKind
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    from ropewalk.datapipe.document_batch import DocumentBatch

JUDGING = "ropewalk.datapipe.filters.judging"
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
Share = Annotated[float, Field(ge=0, le=1)] | None


def _off(text: str) -> str:
    return f"{text}; null: off"


class GopherQuality(Filter):
    """Drop documents that do not look like prose: too short or long, odd words, too many symbols, bullets, ellipses."""

    min_words: int | None = Field(default=50, ge=0, description=_off("least words that are no mere symbols"))
    max_words: int | None = Field(default=100_000, ge=1, description=_off("most words that are no mere symbols"))
    min_mean_word_length: float | None = Field(default=3, ge=0, description=_off("least mean characters of these words"))
    max_mean_word_length: float | None = Field(default=10, ge=0, description=_off("most mean characters of these words"))
    max_hash_ratio: float | None = Field(default=0.1, ge=0, description=_off("most hash signs a word"))
    max_ellipsis_ratio: float | None = Field(default=0.1, ge=0, description=_off("most ellipses a word"))
    max_bullet_lines: Share = Field(default=0.9, description=_off("greatest share of lines that begin with a bullet"))
    max_ellipsis_lines: Share = Field(default=0.3, description=_off("greatest share of lines that end with an ellipsis"))
    min_alphabetic_words: Share = Field(default=0.8, description=_off("least share of words that have a letter"))
    min_stop_words: int | None = Field(default=2, ge=0, description=_off("least number of different stop words"))
    words: WordKind = WORDS
    stop_words: tuple[str, ...] = Field(default=STOP_WORDS, max_length=64, description="the stop words, as they are written")

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The first rule that drops each document."""
        verdict: Verdict = kernels(JUDGING).gopher_quality(self, batch)
        return verdict


class GopherRepetition(Filter):
    """Drop documents that repeat themselves: paragraphs, lines, n-grams of words."""

    words: WordKind = WORDS
    duplicate_paragraph_fraction: Share = Field(default=0.30, description=_off("greatest share of repeated paragraphs"))
    duplicate_paragraph_character_fraction: Share = Field(default=0.20, description=_off("greatest share of characters in them"))
    duplicate_line_fraction: Share = Field(default=0.30, description=_off("greatest share of repeated lines"))
    duplicate_line_character_fraction: Share = Field(default=0.20, description=_off("greatest share of characters in them"))
    top_2_gram_character_fraction: Share = Field(default=0.20, description=_off("greatest share of the most frequent 2-gram"))
    top_3_gram_character_fraction: Share = Field(default=0.18, description=_off("greatest share of the most frequent 3-gram"))
    top_4_gram_character_fraction: Share = Field(default=0.16, description=_off("greatest share of the most frequent 4-gram"))
    duplicate_5_gram_character_fraction: Share = Field(default=0.15, description=_off("greatest share of repeated 5-grams"))
    duplicate_6_gram_character_fraction: Share = Field(default=0.14, description=_off("greatest share of repeated 6-grams"))
    duplicate_7_gram_character_fraction: Share = Field(default=0.13, description=_off("greatest share of repeated 7-grams"))
    duplicate_8_gram_character_fraction: Share = Field(default=0.12, description=_off("greatest share of repeated 8-grams"))
    duplicate_9_gram_character_fraction: Share = Field(default=0.11, description=_off("greatest share of repeated 9-grams"))
    duplicate_10_gram_character_fraction: Share = Field(default=0.10, description=_off("greatest share of repeated 10-grams"))

    def judge(self, batch: "DocumentBatch") -> Verdict:
        """The first rule that drops each document."""
        verdict: Verdict = kernels(JUDGING).gopher_repetition(self, batch)
        return verdict

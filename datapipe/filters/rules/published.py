"""The filters `gopher_quality`, `gopher_repetition`, `c4` and `fineweb`, each as it was published.

A rule's name is the name of its threshold; null switches it off. Gopher's are the rules of Rae et al. 2021 (arXiv 2112.11446),
section A.1.1, table A1. That paper does not define a word, nor say if the first of equal n-grams counts as a duplicate: here it
does not, and words are separated by white space, or are English tokens.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ropewalk.datapipe.filters.filter import WORDS, Filter, Verdict, WordKind
from ropewalk.datapipe.text.compiled import kernels

if TYPE_CHECKING:
    from ropewalk.datapipe.text.document_batch import DocumentBatch

JUDGING = "ropewalk.datapipe.filters.rules.judging"
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


class C4(Filter):
    """Keep only the lines that look like sentences; drop documents of few of them, with curly brackets or filler text.

    The rules of Raffel et al. 2020 (arXiv 1910.10683), section 2.2, in the order of their published code: lines are judged one
    by one, then the document that is left. The rules for documents look at lines that were not dropped before, as the published
    code does; the paper speaks of the page. A sentence ends with a mark before white space; the paper uses a trained splitter.
    There is no list of bad words.
    """

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


class FineWeb(Filter):
    """Drop documents that are lists rather than text: few lines end a sentence, lines are short or repeat themselves.

    The rules of Penedo et al. 2024 (arXiv 2406.17557), section 3.6, with the paper's defaults. Its published code drops from
    0.01 of characters in repeated lines on, not from 0.1, and has the rule of newlines, which the paper does not.
    """

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

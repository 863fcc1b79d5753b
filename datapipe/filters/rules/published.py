"""The filters `gopher_quality`, `gopher_repetition`, `c4` and `fineweb`, each as it was published.

A rule's name is the name of its threshold; null switches it off. Gopher's are the rules of Rae et al. 2021 (arXiv 2112.11446),
section A.1.1, table A1. The paper leaves open if the first of equal n-grams counts as a duplicate (here it does not) and
what a word is (here: separated by white space, or English tokens).
"""

from typing import Annotated, ClassVar

from pydantic import Field

from ropewalk.datapipe.filters.filter import WORDS, CompiledFilter, WordKind

JUDGING = "ropewalk.datapipe.filters.rules.judging"
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
Share = Annotated[float, Field(ge=0, le=1)] | None


def _or_off(text: str) -> str:
    return f"{text}; null: off"


class GopherQuality(CompiledFilter):
    """Drop documents that do not look like prose: bad length, unusual words, too many symbols, bullets or ellipses."""

    judged_by: ClassVar[str] = f"{JUDGING}:gopher_quality"
    min_words: int | None = Field(default=50, ge=0, description=_or_off("minimum number of words, symbols not counted"))
    max_words: int | None = Field(default=100_000, ge=1, description=_or_off("maximum number of words, symbols not counted"))
    min_mean_word_length: float | None = Field(default=3, ge=0, description=_or_off("minimum mean word length in characters"))
    max_mean_word_length: float | None = Field(default=10, ge=0, description=_or_off("maximum mean word length in characters"))
    max_hash_ratio: float | None = Field(default=0.1, ge=0, description=_or_off("maximum number of hash signs per word"))
    max_ellipsis_ratio: float | None = Field(default=0.1, ge=0, description=_or_off("maximum number of ellipses per word"))
    max_bullet_lines: Share = Field(default=0.9, description=_or_off("maximum share of lines that start with a bullet"))
    max_ellipsis_lines: Share = Field(default=0.3, description=_or_off("maximum share of lines that end with an ellipsis"))
    min_alphabetic_words: Share = Field(default=0.8, description=_or_off("minimum share of words with a letter"))
    min_stop_words: int | None = Field(default=2, ge=0, description=_or_off("minimum number of distinct stop words"))
    words: WordKind = WORDS
    stop_words: tuple[str, ...] = Field(default=STOP_WORDS, max_length=64, description="the stop words; case matters")


class GopherRepetition(CompiledFilter):
    """Drop documents that repeat themselves: paragraphs, lines, n-grams of words."""

    judged_by: ClassVar[str] = f"{JUDGING}:gopher_repetition"
    words: WordKind = WORDS
    duplicate_paragraph_fraction: Share = Field(default=0.30, description=_or_off("maximum share of duplicate paragraphs"))
    duplicate_paragraph_character_fraction: Share = Field(
        default=0.20, description=_or_off("maximum share of characters in them")
    )
    duplicate_line_fraction: Share = Field(default=0.30, description=_or_off("maximum share of duplicate lines"))
    duplicate_line_character_fraction: Share = Field(default=0.20, description=_or_off("maximum share of characters in them"))
    top_2_gram_character_fraction: Share = Field(
        default=0.20, description=_or_off("maximum share of characters in the most frequent 2-gram")
    )
    top_3_gram_character_fraction: Share = Field(
        default=0.18, description=_or_off("maximum share of characters in the most frequent 3-gram")
    )
    top_4_gram_character_fraction: Share = Field(
        default=0.16, description=_or_off("maximum share of characters in the most frequent 4-gram")
    )
    duplicate_5_gram_character_fraction: Share = Field(
        default=0.15, description=_or_off("maximum share of characters in repeated 5-grams")
    )
    duplicate_6_gram_character_fraction: Share = Field(
        default=0.14, description=_or_off("maximum share of characters in repeated 6-grams")
    )
    duplicate_7_gram_character_fraction: Share = Field(
        default=0.13, description=_or_off("maximum share of characters in repeated 7-grams")
    )
    duplicate_8_gram_character_fraction: Share = Field(
        default=0.12, description=_or_off("maximum share of characters in repeated 8-grams")
    )
    duplicate_9_gram_character_fraction: Share = Field(
        default=0.11, description=_or_off("maximum share of characters in repeated 9-grams")
    )
    duplicate_10_gram_character_fraction: Share = Field(
        default=0.10, description=_or_off("maximum share of characters in repeated 10-grams")
    )


class C4(CompiledFilter):
    """Keep only lines that look like sentences; drop documents with few of them, curly brackets or filler text.

    The rules of Raffel et al. 2020 (arXiv 1910.10683), section 2.2, in the order of their published code: lines are judged one
    by one, then the remaining document. Document rules look only at lines that were not dropped, as in the published code; the
    paper speaks of the page. A sentence ends with a mark before white space; the paper uses a trained splitter. There is no
    list of bad words.
    """

    judged_by: ClassVar[str] = f"{JUDGING}:c4"
    max_word_length: int | None = Field(default=1000, ge=1, description="drop lines with a longer word; null: off")
    citations: bool = Field(default=True, description="remove [1], [edit] and [citation needed] from lines")
    end_marks: str | None = Field(default=".?!\"'", description="drop lines that end with none of these, or with ...; null: off")
    min_words_per_line: int | None = Field(default=3, ge=0, description="drop lines with fewer words; null: off")
    lorem_ipsum: bool = Field(default=True, description="drop documents that contain `lorem ipsum`")
    javascript: bool = Field(default=True, description="drop lines that contain `javascript`")
    curly_bracket: bool = Field(default=True, description="drop documents that contain {")
    policy: bool = Field(default=True, description="drop lines about cookies, privacy policies or terms of use")
    min_sentences: int | None = Field(default=5, ge=0, description="drop documents with fewer sentences; null: off")


class FineWeb(CompiledFilter):
    """Drop documents that are lists rather than text: few lines end a sentence, lines are short or repeat themselves.

    The rules of Penedo et al. 2024 (arXiv 2406.17557), section 3.6, with the paper's defaults. The published code differs: its
    limit for characters in repeated lines is 0.01 instead of 0.1, and only the code has the rule for newlines.
    """

    judged_by: ClassVar[str] = f"{JUDGING}:fineweb"
    min_punctuated_lines: Share = Field(default=0.12, description="minimum share of lines that end a sentence; null: off")
    max_short_lines: Share = Field(default=0.67, description="maximum share of short lines; null: off")
    short_line_length: int = Field(default=30, ge=0, description="maximum length of a short line in characters")
    max_repeated_line_characters: Share = Field(
        default=0.1, description="maximum share of characters in repeated lines; null: off"
    )
    words: WordKind = WORDS
    max_newlines_per_word: float | None = Field(default=0.3, ge=0, description="maximum number of newlines per word; null: off")

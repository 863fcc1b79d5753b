"""Apply the published rules to a batch; defines the order, and thus the number, of the rules."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ropewalk.datapipe.filters.filter import Filter, Verdict, WordKind
from ropewalk.datapipe.filters.rules import c4_kernels, fineweb_kernels, gopher_kernels
from ropewalk.datapipe.filters.rules.published import C4, FineWeb, GopherQuality, GopherRepetition
from ropewalk.datapipe.text.characters import character_tables
from ropewalk.datapipe.text.document_batch import DocumentBatch, Tokens, Words

QUALITY = tuple(name for name in GopherQuality.model_fields if name not in {"words", "stop_words"})
REPETITION = tuple(name for name in GopherRepetition.model_fields if name != "words")
FINEWEB = ("min_punctuated_lines", "max_short_lines", "max_repeated_line_characters", "max_newlines_per_word")
C4_DOCUMENTS = ("lorem_ipsum", "curly_bracket", "min_sentences", "no_text")
C4_LINES = ("max_word_length", "end_marks", "min_words_per_line", "javascript", "policy")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
PHRASES = ("lorem ipsum", "javascript", *POLICIES, "edit]", "citation needed]")


def _limits(options: Filter, rules: Sequence[str]) -> NDArray[np.float64]:
    """Return the threshold of each rule, NaN if it is off."""
    return np.array([np.nan if getattr(options, rule) is None else getattr(options, rule) for rule in rules], dtype=np.float64)


@cache
def _hashes(stop_words: tuple[str, ...], kind: WordKind) -> NDArray[np.uint64]:
    return np.unique(_words(DocumentBatch.of_texts([*stop_words]), kind).exact)


def _words(batch: DocumentBatch, kind: WordKind) -> Words | Tokens:
    return batch.words if kind == "white_space" else batch.tokens


def _hash_signs(batch: DocumentBatch) -> NDArray[np.int64]:
    return np.diff(np.searchsorted(np.flatnonzero(batch.data == 35), batch.offsets)).astype(np.int64)


def _ellipses(batch: DocumentBatch) -> NDArray[np.int64]:
    """Return the positions, ascending, of `...` and of the ellipsis character; each has three bytes."""
    data = batch.data
    point = data == 46
    points = np.flatnonzero(point[:-2] & point[1:-1] & point[2:])
    leads = np.flatnonzero(data[:-2] == 0xE2)  # rare, so that the next line is cheap
    characters = leads[(data[leads + 1] == 0x80) & (data[leads + 2] == 0xA6)]
    return np.sort(np.concatenate([points, characters]))


def gopher_quality(options: GopherQuality, batch: DocumentBatch) -> Verdict:
    """Apply Gopher's quality rules."""
    codes = np.zeros(len(batch), dtype=np.uint8)
    text_words = _words(batch, options.words)
    gopher_kernels.quality(
        batch.data,
        batch.offsets,
        character_tables().flags,
        text_words.first,
        text_words.chars,
        text_words.kind,
        text_words.exact,
        _hashes(options.stop_words, options.words),
        _hash_signs(batch),
        _ellipses(batch),
        _limits(options, QUALITY),
        codes,
    )
    return Verdict(QUALITY, codes)


def gopher_repetition(options: GopherRepetition, batch: DocumentBatch) -> Verdict:
    """Apply Gopher's repetition rules."""
    codes = np.zeros(len(batch), dtype=np.uint8)
    text_words, lines, flags = _words(batch, options.words), batch.lines, character_tables().flags
    gopher_kernels.repetition(
        batch.data,
        batch.offsets,
        flags,
        text_words.first,
        text_words.chars,
        text_words.exact,
        lines.first,
        lines.start,
        lines.end,
        lines.chars,
        _limits(options, REPETITION),
        codes,
    )
    return Verdict(REPETITION, codes)


def fineweb(options: FineWeb, batch: DocumentBatch) -> Verdict:
    """Apply FineWeb's rules."""
    codes = np.zeros(len(batch), dtype=np.uint8)
    lines, flags = batch.lines, character_tables().flags
    limits = _limits(options, FINEWEB)
    fineweb_kernels.fineweb(
        batch.data,
        lines.first,
        flags,
        lines.start,
        lines.end,
        lines.chars,
        _words(batch, options.words).first,
        options.short_line_length,
        limits,
        codes,
    )
    return Verdict(FINEWEB, codes)


def c4(options: C4, batch: DocumentBatch) -> Verdict:
    """Apply C4's rules; the verdict has the remaining texts and the number of lines that each rule dropped."""
    codes, ends = np.zeros(len(batch), dtype=np.uint8), np.zeros(len(batch), dtype=np.int64)
    dropped = np.zeros(len(C4_LINES), dtype=np.int64)
    out = np.empty(int(batch.offsets[-1] - batch.offsets[0]) + 1, dtype=np.uint8)
    phrases = np.frombuffer("".join(PHRASES).encode(), dtype=np.uint8)
    bounds = np.cumsum([0, *map(len, PHRASES)], dtype=np.int64)
    text_words = batch.words
    numbers = [-1 if n is None else n for n in (options.min_sentences, options.min_words_per_line, options.max_word_length)]
    switches = (
        options.end_marks is not None,
        options.citations,
        options.lorem_ipsum,
        options.javascript,
        options.curly_bracket,
        options.policy,
    )
    written = c4_kernels.c4(
        batch.data,
        batch.offsets,
        character_tables().flags,
        text_words.first,
        text_words.start,
        text_words.chars,
        phrases,
        bounds,
        np.array([ord(mark) for mark in options.end_marks or ""], dtype=np.uint32),
        np.array([*numbers, *switches], dtype=np.int64),
        codes,
        dropped,
        out,
        ends,
    )
    offsets = pa.py_buffer(np.concatenate([[0], ends]).astype(np.int64))
    texts = pa.LargeStringArray.from_buffers(len(batch), offsets, pa.py_buffer(out[:written].copy()))
    return Verdict(C4_DOCUMENTS, codes, texts, dict(zip(C4_LINES, dropped.tolist(), strict=True)))

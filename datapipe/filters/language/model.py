"""py3langid's model over many texts at once: the same labels and probabilities, a hundred times as fast."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from py3langid.langid import MODEL_DIR, MODEL_FILE
from py3langid.modelio import load_model

from ropewalk.datapipe.filters.filter import Verdict
from ropewalk.datapipe.filters.language.filter import Language
from ropewalk.datapipe.filters.language.kernels import (
    CODE_LINE_ENDS,
    CODE_SYMBOLS,
    HAS_CAPITAL,
    HAS_SMALL,
    NOT_ASCII,
    PIECE,
    add_scores,
    look,
)
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.datapipe.text.document_batch import DocumentBatch

UNKNOWN = "und"
NO_LANGUAGE = "zxx"  # the model's own label of what is no language
CODE_SHARE, CODE_LINE_SHARE = 0.04, 0.15  # symbols of code among the visible bytes, lines that end with one
CODE_SHARE_ALONE = 0.15
READ_BYTES = 4 * PIECE  # of a text at most


@dataclass(frozen=True, kw_only=True)
class Languages:
    """For each text the most probable label, its probability, and whether it looks like code."""

    names: tuple[str, ...]
    label: NDArray[np.int64]  # index in `names`
    confidence: NDArray[np.float32]
    code: NDArray[np.bool_]

    def of(self, index: int) -> str:
        """The name of a text's most probable label."""
        return self.names[int(self.label[index])]


@cache
def _model() -> tuple[Any, tuple[str, ...], tuple[tuple[int, int], ...]]:
    """The automaton and the weights, the labels, and the pairs of labels with one name."""
    weights, priors, labels, moves, rows, features = load_model(MODEL_DIR / MODEL_FILE)
    first: dict[str, int] = {}
    pairs = [(first[name], at) for at, name in enumerate(labels) if first.setdefault(name, at) != at]
    automaton = (np.array(moves), np.array(rows), np.array(features, np.int32))
    arrays = (automaton, np.asarray(weights).astype(np.float32), np.asarray(priors, np.float32))
    return arrays, tuple(labels), tuple(pairs)


@cache
def _kinds() -> NDArray[np.uint8]:
    kinds = np.zeros(256, np.uint8)
    kinds[65:91], kinds[97:123], kinds[128:] = HAS_CAPITAL, HAS_SMALL, NOT_ASCII
    kinds[list(CODE_SYMBOLS)] |= 8
    kinds[list(CODE_LINE_ENDS)] |= 16
    return kinds


def known_languages() -> tuple[str, ...]:
    """The codes of all languages that the model tells apart."""
    return tuple(name for name in _model()[1] if name not in {UNKNOWN, NO_LANGUAGE})


def identify(batch: TextBatch) -> Languages:
    """The language of each text, as py3langid with `norm_probs=True` tells it; of a text of more than 16 KiB, by four pieces."""
    model, names, pairs = _model()
    looks, found = np.zeros(len(batch), np.uint8), np.zeros((len(batch), 4), np.int64)
    look(batch.data, batch.offsets, _kinds(), looks, found)
    texts = _prepared(batch, looks)
    scores = np.zeros((len(texts), len(names)), np.float32)
    add_scores(texts.data, texts.offsets, model, scores)
    scores *= (1 / np.sqrt(np.clip(np.diff(texts.offsets), 1, READ_BYTES)))[:, None].astype(np.float32)
    np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf), out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    for one, other in pairs:
        scores[:, one] += scores[:, other]
        scores[:, other] = 0
    label = scores.argmax(axis=1)
    return Languages(names=names, label=label, confidence=scores[np.arange(len(texts)), label], code=_code(found))


def _code(found: NDArray[np.int64]) -> NDArray[np.bool_]:
    visible, symbols, lines, code_lines = np.maximum(found, [1, 0, 1, 0]).T
    share = symbols / visible
    return np.asarray((share > CODE_SHARE) & (code_lines / lines > CODE_LINE_SHARE) | (share > CODE_SHARE_ALONE))


def _prepared(batch: TextBatch, looks: NDArray[np.uint8]) -> TextBatch:
    """The texts as the model wants them: in NFC, and in small letters where all are capitals."""
    changed: dict[int, str] = {}
    for index in np.flatnonzero((looks & NOT_ASCII).astype(bool) | ((looks & (HAS_SMALL | HAS_CAPITAL)) == HAS_CAPITAL)).tolist():
        text = batch.text(index)
        if text.isupper():
            changed[index] = unicodedata.normalize("NFC", text.lower())
        elif not unicodedata.is_normalized("NFC", text):
            changed[index] = unicodedata.normalize("NFC", text)
    if not changed:
        return batch
    raws: Sequence[bytes] = [changed[i].encode() if i in changed else batch.raw(i) for i in range(len(batch))]
    offsets = np.cumsum([0, *map(len, raws)], dtype=np.int64)
    return TextBatch(data=np.frombuffer(b"".join(raws), np.uint8), offsets=offsets)


def labels(options: Language, batch: DocumentBatch) -> list[str]:
    """The language of each document, `und` for what is none."""
    found = identify(TextBatch.of_documents(batch))
    unknown = found.confidence < options.min_confidence
    if options.code:
        unknown |= found.code
    named = [found.names[label] for label in found.label.tolist()]
    return [UNKNOWN if out or name == NO_LANGUAGE else name for out, name in zip(unknown.tolist(), named, strict=True)]


def judge(options: Language, batch: DocumentBatch) -> Verdict:
    """The reason is the language; what is kept is counted by language."""
    names = labels(options, batch)
    wanted = {*options.keep} if options.keep else {*known_languages()}
    reasons = tuple(sorted({*names} - wanted))
    number = {name: place for place, name in enumerate(reasons, 1)}
    codes = np.array([number.get(name, 0) for name in names], np.int64)
    return Verdict(reasons, codes, counts=dict(Counter(name for name in names if name in wanted)), columns={"language": names})

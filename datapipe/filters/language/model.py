"""py3langid's model for batches of texts: equal labels and probabilities, a hundred times as fast."""

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
from ropewalk.datapipe.filters.language.filter import UNKNOWN, Language
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

NO_LANGUAGE = "zxx"  # the model's label for text that is not language
CODE_SHARE, CODE_LINE_SHARE = 0.04, 0.15  # code symbols per visible byte; share of lines that end with one
CODE_SHARE_ALONE = 0.15
READ_BYTES = 4 * PIECE  # maximum per text


@dataclass(frozen=True, kw_only=True)
class Languages:
    """The most probable label of each text, its probability, and a flag for texts that look like code."""

    names: tuple[str, ...]
    label: NDArray[np.int64]  # index in `names`
    confidence: NDArray[np.float32]
    code: NDArray[np.bool_]

    def of(self, index: int) -> str:
        """Return the name of a text's most probable label."""
        return self.names[int(self.label[index])]


@cache
def _model() -> tuple[Any, tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Return automaton, weights and priors; the labels; and the pairs of labels that share a name."""
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
    """Return the codes of all languages of the model."""
    return tuple(name for name in _model()[1] if name not in {UNKNOWN, NO_LANGUAGE})


def identify(batch: TextBatch) -> Languages:
    """Identify the language of each text, as py3langid with `norm_probs=True`; texts over 16 KiB are judged by four pieces."""
    model, names, pairs = _model()
    looks, counts = np.zeros(len(batch), np.uint8), np.zeros((len(batch), 4), np.int64)
    look(batch.data, batch.offsets, _kinds(), looks, counts)
    texts = _normalize(batch, looks)
    scores = np.zeros((len(texts), len(names)), np.float32)
    add_scores(texts.data, texts.offsets, model, scores)
    scores *= (1 / np.sqrt(np.clip(np.diff(texts.offsets), 1, READ_BYTES)))[:, None].astype(np.float32)
    np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf), out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    for first, other in pairs:
        scores[:, first] += scores[:, other]
        scores[:, other] = 0
    label = scores.argmax(axis=1)
    return Languages(names=names, label=label, confidence=scores[np.arange(len(texts)), label], code=_looks_like_code(counts))


def _looks_like_code(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    visible, symbols, lines, code_lines = np.maximum(counts, [1, 0, 1, 0]).T
    share = symbols / visible
    return np.asarray((share > CODE_SHARE) & (code_lines / lines > CODE_LINE_SHARE) | (share > CODE_SHARE_ALONE))


def _normalize(batch: TextBatch, looks: NDArray[np.uint8]) -> TextBatch:
    """Normalize the texts for the model: NFC, and lower case if all letters are capitals."""
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
    """Return the language of each document, `und` if undetermined."""
    languages = identify(TextBatch.of_documents(batch))
    undetermined = languages.confidence < options.min_confidence
    if options.code:
        undetermined |= languages.code
    names = [languages.names[label] for label in languages.label.tolist()]
    return [UNKNOWN if out or name == NO_LANGUAGE else name for out, name in zip(undetermined.tolist(), names, strict=True)]


def judge(options: Language, batch: DocumentBatch) -> Verdict:
    """Drop documents in unwanted languages, with the language as reason; count kept documents by language."""
    names = labels(options, batch)
    wanted = {*options.keep} if options.keep else {*known_languages()}
    reasons = tuple(sorted({*names} - wanted))
    number = {name: index for index, name in enumerate(reasons, 1)}
    codes = np.array([number.get(name, 0) for name in names], np.int64)
    return Verdict(reasons, codes, counts=dict(Counter(name for name in names if name in wanted)), columns={"language": names})

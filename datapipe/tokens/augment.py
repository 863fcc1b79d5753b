"""Rewrite training documents by a user-defined function, and rearrange them for fill-in-the-middle."""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

import numpy as np
import xxhash
from numpy.typing import NDArray

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.project import user_object
from ropewalk.datapipe.text.document import NamedDocument
from ropewalk.datapipe.tokens.config import Augment, FillInTheMiddle
from ropewalk.datapipe.tokens.tokenizer import Encoder


def encode_augmented(
    documents: Sequence[NamedDocument], encoder: Encoder, augment: Augment | None
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """Return the concatenated tokens of documents and the number of tokens of each. Random choices depend only on the id."""
    texts = [document.text for document in documents]
    if augment is None:
        return encoder.encode_flat(texts)
    if augment.function:
        function = user_object("augment.function", augment.function)
        texts = [_rewrite(augment.function, function, document) for document in documents]
    if augment.fim is None:
        return encoder.encode_flat(texts)
    orders = [_order(document, text, augment.fim) for document, text in zip(documents, texts, strict=True)]
    tokens, lengths = encoder.encode_flat([part for parts in orders for part in parts if not isinstance(part, _Mark)])
    pieces = iter(np.split(tokens, np.cumsum(lengths)[:-1]))
    marks = [encoder.special(token) for token in augment.fim.tokens]
    encoded = [_join(parts, pieces, marks, encoder) for parts in orders]
    return np.concatenate(encoded), np.array([len(of_document) for of_document in encoded], np.int64)


class _Mark(int):
    """One of the three special tokens: 0 prefix, 1 middle, 2 suffix."""


def _order(document: NamedDocument, text: str, fim: FillInTheMiddle) -> list[str | _Mark]:
    """Return the parts of a document in training order: PSM, SPM, or the unchanged text."""
    if len(text) < 3 or not any(fnmatchcase(name, glob) for glob in fim.of for name in (document.id, document.source)):
        return [text]
    draws = [xxhash.xxh3_64_intdigest(document.id.encode(), seed=seed) / 2.0**64 for seed in range(4)]
    if draws[0] >= fim.rate:
        return [text]
    first, second = sorted(int(draw * (len(text) + 1)) for draw in draws[1:3])
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    if draws[3] < fim.spm_rate:
        return [_Mark(0), _Mark(2), suffix, _Mark(1), prefix, middle]
    return [_Mark(0), prefix, _Mark(2), suffix, _Mark(1), middle]


def _join(
    parts: Sequence[str | _Mark], pieces: Iterator[NDArray[np.unsignedinteger]], marks: Sequence[int], encoder: Encoder
) -> NDArray[np.unsignedinteger]:
    """Concatenate the tokens of all parts, with a single end-of-document token at the end."""
    tokens = [np.array([marks[part]], encoder.dtype) if isinstance(part, _Mark) else next(pieces)[:-1] for part in parts]
    return np.concatenate([*tokens, np.array([encoder.end_of_document], encoder.dtype)])


def _rewrite(name: str, function: Callable[[str, str], str], document: NamedDocument) -> str:
    try:
        text = function(document.text, document.id)
    except Exception as error:
        raise DataError(
            f"augment.function {name} failed for document {document.id}: {error!r}; fix the function or unset it"
        ) from error
    if not isinstance(text, str):
        raise DataError(f"augment.function {name}: returned {type(text).__name__} for document {document.id}, must return str")
    return text

"""Texts as vectors: hashed n-grams in their principal directions, or a static model of the user's."""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.errors import ConfigError

Floats = NDArray[np.float32]

DIRECTIONS = 128
_BUCKETS = 1 << 11  # of words, and as many of runs of bytes
_BYTES_A_GRAM = 4
_CHARS = 4000  # of a text that are looked at
_WORD = re.compile(r"\w+|[^\w\s]")
_OVERSAMPLED, _ITERATIONS = 32, 3  # of the randomized search for principal directions


def embed(texts: Sequence[str], model: str | None = None, *, seed: int = 0) -> Floats:
    """A row for each text, which does not depend on the side of any. Raises ConfigError for a model that cannot be opened."""
    if model is not None:
        return _by_static_model(texts, Path(model))
    return principal(hashed(texts), DIRECTIONS, seed=seed)


def hashed(texts: Sequence[str]) -> Any:
    """TF-IDF of words and of runs of four bytes in hash buckets: a sparse matrix [text, bucket], each half of unit length."""
    from scipy import sparse

    hashes: dict[str, int] = {}
    rows, columns, counts = [], [], []
    for number, text in enumerate(texts):
        lower = text[:_CHARS].lower()
        words = [_hash(word, hashes) for word in _WORD.findall(lower)]
        buckets = np.concatenate([np.array(words, np.int64), _grams(lower) + _BUCKETS])
        found, times = np.unique(buckets, return_counts=True)
        rows.append(np.full(len(found), number))
        columns.append(found)
        counts.append(times)
    shape = (len(texts), 2 * _BUCKETS)
    values = np.log1p(np.concatenate(counts, dtype=np.float32))
    matrix = sparse.csr_array((values, (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    seen = np.bincount(matrix.indices, minlength=shape[1])
    matrix = matrix @ sparse.diags_array(np.log((1 + len(texts)) / (1 + seen)).astype(np.float32))
    halves = [_unit_rows(matrix[:, :_BUCKETS]), _unit_rows(matrix[:, _BUCKETS:])]
    return sparse.csr_array(sparse.hstack(halves)) * np.float32(np.sqrt(0.5))


def _hash(word: str, known: dict[str, int]) -> int:
    found = known.get(word)
    if found is None:
        found = known[word] = zlib.crc32(word.encode("utf-8", "replace")) % _BUCKETS
    return found


def _grams(text: str) -> NDArray[np.int64]:
    raw = np.frombuffer(" ".join(text.split()).encode("utf-8", "replace"), np.uint8).astype(np.uint64)
    count = len(raw) - _BYTES_A_GRAM + 1
    if count < 1:
        return np.zeros(0, np.int64)
    grams = np.zeros(count, np.uint64)
    for place in range(_BYTES_A_GRAM):
        grams |= raw[place : place + count] << np.uint64(8 * place)
    return ((grams * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)).astype(np.int64) % _BUCKETS  # Fibonacci hashing


def _unit_rows(matrix: Any) -> Any:
    from scipy import sparse

    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.diags_array((1 / np.maximum(lengths, 1e-12)).astype(np.float32)) @ matrix


def principal(matrix: Any, directions: int, *, seed: int = 0) -> Floats:
    """The rows of a sparse matrix, centred, in their principal directions, as Halko, Martinsson and Tropp (2011) find them."""
    count, width = matrix.shape
    directions = min(directions, count - 1, width)
    mean = np.asarray(matrix.mean(axis=0), np.float32).ravel()
    guess = np.random.default_rng(seed).standard_normal((width, directions + _OVERSAMPLED)).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(matrix @ guess - mean @ guess)[0]
        guess = matrix.T @ basis - np.outer(mean, basis.sum(axis=0))
    _, _, axes = np.linalg.svd(guess.T, full_matrices=False)
    axes = axes[:directions].T
    return np.asarray(matrix @ axes - mean @ axes, np.float32)


def _by_static_model(texts: Sequence[str], directory: Path) -> Floats:
    try:
        from model2vec import StaticModel
    except ImportError:
        raise ConfigError("embedding: model2vec is not installed; pip install 'ropewalk[drift]', or leave it unset") from None
    if not (directory / "model.safetensors").is_file():
        raise ConfigError(f"embedding: {directory}: no model.safetensors; give a model of model2vec, or leave it unset")
    found = StaticModel.from_pretrained(directory).encode([text[:_CHARS] for text in texts])
    rows = np.asarray(found, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)

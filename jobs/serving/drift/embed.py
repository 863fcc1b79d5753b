"""Text embeddings: hashed n-grams reduced to principal directions, or a static model of the user's."""

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
_BUCKETS = 1 << 11  # hash buckets of words, and as many of byte n-grams
_GRAM_BYTES = 4
_MAX_CHARS = 4000  # of a text; the rest is ignored
_WORD = re.compile(r"\w+|[^\w\s]")
_OVERSAMPLED, _ITERATIONS = 32, 3  # of randomized SVD


def embed(texts: Sequence[str], model: str | None = None, *, seed: int = 0) -> Floats:
    """Return one row per text, independent of the side it belongs to. Raises ConfigError for a model that cannot be opened."""
    if model is not None:
        return _by_static_model(texts, Path(model))
    return project(hash_ngrams(texts), DIRECTIONS, seed=seed)


def hash_ngrams(texts: Sequence[str]) -> Any:
    """Return TF-IDF weights of hashed words and byte 4-grams: a sparse matrix [text, bucket], each half of unit length."""
    from scipy import sparse

    hashes: dict[str, int] = {}
    rows, columns, counts = [], [], []
    for number, text in enumerate(texts):
        lower = text[:_MAX_CHARS].lower()
        word_buckets = [_hash(word, hashes) for word in _WORD.findall(lower)]
        buckets = np.concatenate([np.array(word_buckets, np.int64), _grams(lower) + _BUCKETS])
        unique, times = np.unique(buckets, return_counts=True)
        rows.append(np.full(len(unique), number))
        columns.append(unique)
        counts.append(times)
    shape = (len(texts), 2 * _BUCKETS)
    values = np.log1p(np.concatenate(counts, dtype=np.float32))
    matrix = sparse.csr_array((values, (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    num_texts = np.bincount(matrix.indices, minlength=shape[1])
    matrix = matrix @ sparse.diags_array(np.log((1 + len(texts)) / (1 + num_texts)).astype(np.float32))
    halves = [_unit_rows(matrix[:, :_BUCKETS]), _unit_rows(matrix[:, _BUCKETS:])]
    return sparse.csr_array(sparse.hstack(halves)) * np.float32(np.sqrt(0.5))


def _hash(word: str, cache: dict[str, int]) -> int:
    bucket = cache.get(word)
    if bucket is None:
        bucket = cache[word] = zlib.crc32(word.encode("utf-8", "replace")) % _BUCKETS
    return bucket


def _grams(text: str) -> NDArray[np.int64]:
    raw = np.frombuffer(" ".join(text.split()).encode("utf-8", "replace"), np.uint8).astype(np.uint64)
    count = len(raw) - _GRAM_BYTES + 1
    if count < 1:
        return np.zeros(0, np.int64)
    grams = np.zeros(count, np.uint64)
    for offset in range(_GRAM_BYTES):
        grams |= raw[offset : offset + count] << np.uint64(8 * offset)
    return ((grams * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)).astype(np.int64) % _BUCKETS  # Fibonacci hashing


def _unit_rows(matrix: Any) -> Any:
    from scipy import sparse

    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.diags_array((1 / np.maximum(lengths, 1e-12)).astype(np.float32)) @ matrix


def project(matrix: Any, directions: int, *, seed: int = 0) -> Floats:
    """Project the centred rows of a sparse matrix on their principal directions (Halko, Martinsson and Tropp, 2011)."""
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
        raise ConfigError(f"embedding: {directory}: no model.safetensors; name a model2vec model, or leave it unset")
    vectors = StaticModel.from_pretrained(directory).encode([text[:_MAX_CHARS] for text in texts])
    rows = np.asarray(vectors, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)

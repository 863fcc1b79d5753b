"""Windows of training text drawn by the seed: the prefix given to the model, and the continuation to be reproduced."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ropewalk.datapipe.loader.shard_texts import TrainingShard, text_batches
from ropewalk.jobs.inference.scoring.open_model import OpenModel


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens of one document, by the model's own tokenizer."""

    shard: str
    document: str
    prefix: tuple[int, ...]
    continuation: tuple[int, ...]


class Sizes(NamedTuple):
    """Tokens of prefix and continuation."""

    prefix: int
    continuation: int


def draw_windows(opened: OpenModel, shards: list[TrainingShard], count: int, sizes: Sizes, seed: int) -> list[Window]:
    """Return up to `count` windows, one per sufficiently long document.

    Shards are weighted by tokens; documents and positions are uniform. Only shards with windows are read. Documents are encoded
    again because the model may have another tokenizer.
    """
    random = np.random.default_rng([seed, count, *sizes])
    tokens = np.array([shard.shard.tokens for shard in shards], dtype=np.float64)
    num_windows = random.multinomial(count, tokens / tokens.sum()) if tokens.sum() else np.zeros(len(shards), dtype=int)
    windows: list[Window] = []
    for shard, number in zip(shards, num_windows.tolist(), strict=True):
        if number:
            documents = list(_long_documents(opened, shard, sum(sizes)))
            chosen = random.permutation(len(documents))[:number]
            windows += [_window(shard, documents[index], sizes, random) for index in sorted(chosen.tolist())]
    return windows


def _long_documents(opened: OpenModel, shard: TrainingShard, length: int) -> Iterator[tuple[str, list[int]]]:
    for documents in text_batches(shard):
        texts = [document.text for document in documents]
        encoded = opened.tokenizer(texts, add_special_tokens=False).input_ids
        for document, ids in zip(documents, encoded, strict=True):
            if len(ids) >= length:
                yield document.id, list(ids)


def _window(shard: TrainingShard, encoded: tuple[str, list[int]], sizes: Sizes, random: np.random.Generator) -> Window:
    document, ids = encoded
    start = int(random.integers(len(ids) - sum(sizes) + 1))
    middle, end = start + sizes.prefix, start + sum(sizes)
    return Window(shard=shard.name, document=document, prefix=tuple(ids[start:middle]), continuation=tuple(ids[middle:end]))

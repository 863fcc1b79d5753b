"""Windows of training text, drawn by the seed: what the model is given, and what it would have to write word for word."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ropewalk.datapipe.loader.shard_texts import TrainingShard, text_batches
from ropewalk.jobs.inference.scoring.open_model import OpenModel


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens of one document, of the model's own tokenizer."""

    shard: str
    document: str
    prefix: tuple[int, ...]
    continuation: tuple[int, ...]


class Sizes(NamedTuple):
    """Tokens of a window: those that the model is given, and those that it must write."""

    prefix: int
    continuation: int


def draw_windows(opened: OpenModel, shards: list[TrainingShard], count: int, sizes: Sizes, seed: int) -> list[Window]:
    """As many windows as there are long enough documents, up to `count`: shards by their tokens, documents alike, any place.

    Only the shards that windows are drawn from are read. Documents are encoded anew: the model may have another tokenizer.
    """
    random = np.random.default_rng([seed, count, *sizes])
    tokens = np.array([one.shard.tokens for one in shards], dtype=np.float64)
    wanted = random.multinomial(count, tokens / tokens.sum()) if tokens.sum() else np.zeros(len(shards), dtype=int)
    found: list[Window] = []
    for shard, number in zip(shards, wanted.tolist(), strict=True):
        if number:
            own = list(_long_documents(opened, shard, sum(sizes)))
            chosen = random.permutation(len(own))[:number]
            found += [_window(shard, own[index], sizes, random) for index in sorted(chosen.tolist())]
    return found


def _long_documents(opened: OpenModel, shard: TrainingShard, length: int) -> Iterator[tuple[str, list[int]]]:
    for documents in text_batches(shard):
        texts = [document.text for document in documents]
        encoded = opened.tokenizer(texts, add_special_tokens=False).input_ids
        for document, ids in zip(documents, encoded, strict=True):
            if len(ids) >= length:
                yield document.id, list(ids)


def _window(shard: TrainingShard, own: tuple[str, list[int]], sizes: Sizes, random: np.random.Generator) -> Window:
    document, ids = own
    start = int(random.integers(len(ids) - sum(sizes) + 1))
    middle, end = start + sizes.prefix, start + sum(sizes)
    return Window(shard=shard.name, document=document, prefix=tuple(ids[start:middle]), continuation=tuple(ids[middle:end]))

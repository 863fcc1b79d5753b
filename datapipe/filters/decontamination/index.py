"""Index of evaluation items by word n-grams, and search for texts that overlap with them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.filters.decontamination.filter import Decontaminate
from ropewalk.datapipe.filters.decontamination.items import evaluation_files, read_items
from ropewalk.datapipe.filters.decontamination.kernels import build_table, find_overlaps
from ropewalk.datapipe.filters.decontamination.word_kernels import CLASSES, hash_words
from ropewalk.datapipe.filters.filter import Verdict
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.datapipe.text.document_batch import DocumentBatch

SHORTEST = 8  # words; fewer may be shared by chance


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A text that contains n-grams of an item: their indices, and the part of the item that it contains."""

    text: int
    item: int
    num_words: int  # words of the item that occur in shared n-grams
    share: float  # of the item's words
    start: int  # UTF-8 byte of the first shared n-gram in the text


@dataclass(frozen=True, kw_only=True)
class NgramIndex:
    """Evaluation items as sequences of word hashes, with a hash table of the positions of each half n-gram.

    A text overlaps with an item if both have `ngram` consecutive words of which at most one differs. An item of 8 words or
    more that is shorter than that is one n-gram (below 12 words, none may differ); items of fewer words are not searched for.
    """

    ngram: int
    item_words: NDArray[np.uint64]  # hashes of the words of all items
    bounds: NDArray[np.int64]  # [parts + 1] in `item_words`
    owner: NDArray[np.int64]  # [parts] the item of each part
    size: NDArray[np.int64]  # [items] number of words searched for; 0: too short
    slots: NDArray[np.int64]  # hash table: 1 + first position of a half n-gram; 0: empty
    chain: NDArray[np.int64]  # [words] 1 + next position with an equal hash
    sieve: NDArray[np.uint8]  # Bloom filter of the half n-grams, small enough for the cache: rejects almost all words

    @classmethod
    def build(cls, items: Iterable[str | tuple[str, ...]], ngram: int = 13) -> "NgramIndex":
        """Build the index; an item is one text, or several (a question and its answers)."""
        arrays: list[NDArray[np.uint64]] = []
        owner: list[int] = []
        sizes: list[int] = []
        for number, item in enumerate(items):
            parts = parts_of((item,) if isinstance(item, str) else item, ngram)
            arrays.extend(parts)
            owner.extend([number] * len(parts))
            sizes.append(sum(map(len, parts)))
        item_words = np.concatenate(arrays) if arrays else np.zeros(0, np.uint64)
        bounds = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        bits = max(int(np.ceil(np.log2(max(len(item_words), 1)))) + 1, 10)
        slots = np.zeros(1 << bits, np.int64)
        chain = np.zeros(len(item_words), np.int64)
        sieve = np.zeros(1 << bits, np.uint8)  # 8 bits per slot
        build_table(item_words, bounds, seed_words(ngram), slots, chain, sieve)
        return cls(
            ngram=ngram,
            item_words=item_words,
            bounds=bounds,
            owner=np.array(owner, np.int64),
            size=np.array(sizes, np.int64),
            slots=slots,
            chain=chain,
            sieve=sieve,
        )

    @property
    def too_short(self) -> int:
        """Number of items that are not searched for because they have fewer than 8 words."""
        return int((self.size == 0).sum())

    def overlaps(self, batch: TextBatch, first_only: bool = False) -> list[Overlap]:
        """Return all pairs of a text and an item that overlap, sorted by text and item; with `first_only` one per text."""
        if not len(self.item_words) or not len(batch):
            return []
        longest = int(np.diff(batch.offsets).max()) // 2 + 2
        scratch = np.empty(longest, np.uint64), np.empty(longest, np.int64)
        table = (self.item_words, self.bounds, self.owner, self.slots, self.chain, self.sieve)
        room = len(batch) + 16
        while True:
            rows = np.zeros((room, 4), np.int64)
            stamps = np.zeros(len(self.item_words), np.int64)
            last = np.full(len(self.size), -1, np.int64)
            many = find_overlaps(batch.data, batch.offsets, CLASSES, scratch, table, self.ngram, first_only, stamps, last, rows)
            if many <= room:
                break
            room = many
        ordered = sorted(map(tuple, rows[:many].tolist()))
        return [Overlap(text=t, item=i, num_words=w, share=w / int(self.size[i]), start=s) for t, i, w, s in ordered]

    def matches(self, text: str) -> list[Overlap]:
        return self.overlaps(TextBatch.of([text]))


def seed_words(ngram: int) -> int:
    """Return the length of a half n-gram: a run of unchanged words that remains if one of n words differs."""
    return max(ngram // 2, 1)


def words_of(text: str) -> NDArray[np.uint64]:
    """Return the hashes of a text's words."""
    batch = TextBatch.of([text])
    hashes, starts = np.empty(batch.num_bytes // 2 + 1, np.uint64), np.empty(batch.num_bytes // 2 + 1, np.int64)
    return hashes[: hash_words(batch.data, 0, batch.num_bytes, CLASSES, hashes, starts)].copy()


def parts_of(texts: tuple[str, ...], ngram: int) -> list[NDArray[np.uint64]]:
    """Return the word hashes of the texts of an item that are long enough, or of all texts joined if none is."""
    least = min(SHORTEST, ngram)
    parts = [hashes for text in texts if len(hashes := words_of(text)) >= least]
    if not parts and len(texts) > 1 and len(hashes := words_of(" ".join(texts))) >= least:
        parts = [hashes]
    return parts


@lru_cache(maxsize=2)
def evaluation_sets(against: tuple[str, ...], ngram: int) -> tuple[NgramIndex, tuple[str, ...]]:
    """Read and index the evaluation files, once per process; also return the file of each item, without its ending."""
    items = list(read_items(evaluation_files(against)))
    return NgramIndex.build((item.texts for item in items), ngram), tuple(_stem(item.file) for item in items)


def judge(options: Decontaminate, batch: DocumentBatch) -> Verdict:
    """Drop documents that overlap with an item; the reason is the file of the first such item, without its ending."""
    index, files = evaluation_sets(options.against, options.ngram)
    reasons = tuple(dict.fromkeys(files))
    numbers = {name: number for number, name in enumerate(reasons, 1)}
    codes = np.zeros(len(batch), np.int64)
    for overlap in index.overlaps(TextBatch.of_documents(batch), first_only=True):
        codes[overlap.text] = numbers[files[overlap.item]]
    return Verdict(reasons, codes)


def _stem(file: str) -> str:
    return PurePosixPath(file).name.split(".")[0] or file

"""An index of evaluation items by n-grams of words, and the texts of a batch that overlap with them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.filters.decontamination.kernels import build_table, find_overlaps
from ropewalk.datapipe.filters.decontamination.word_kernels import CLASSES, hash_words
from ropewalk.datapipe.text.batch import TextBatch

SHORTEST = 8  # words; whoever shares fewer with an item may do so by chance
MOST_FOUND = 1 << 16  # overlaps of one batch that are told


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A text that contains n-grams of an item: the numbers of both, and how much of the item it contains."""

    text: int
    item: int
    words: int  # of the item, that the text has in the same n-grams
    share: float  # of the item's words
    start: int  # of the first such n-gram in the text, UTF-8 bytes


@dataclass(frozen=True, kw_only=True)
class NgramIndex:
    """Evaluation items as sequences of word hashes, with a table of half n-grams that lead to each place in them.

    A text overlaps with an item if both have `ngram` words in a row of which at most one differs. A shorter item of 8 words
    or more is one n-gram of its own length (fewer than 12: no word may differ); one of fewer words is not looked for.
    """

    ngram: int
    words: NDArray[np.uint64]  # of all items
    bounds: NDArray[np.int64]  # [parts + 1] in words
    owner: NDArray[np.int64]  # [parts] the item of each part
    size: NDArray[np.int64]  # [items] words of each item that are looked for; 0: too short
    slots: NDArray[np.int64]  # hash table: 1 + the first place of a half n-gram, 0 where there is none
    chain: NDArray[np.int64]  # [words] 1 + the next place with the same hash
    sieve: NDArray[np.uint8]  # a bit for each half n-gram, in little memory: almost all words of a text end here

    @classmethod
    def build(cls, items: Iterable[str | tuple[str, ...]], ngram: int = 13) -> "NgramIndex":
        """The index of these items, each a text or several (a question and its answers), which count as one item."""
        arrays: list[NDArray[np.uint64]] = []
        owner: list[int] = []
        sizes: list[int] = []
        for number, item in enumerate(items):
            parts = parts_of((item,) if isinstance(item, str) else item, ngram)
            arrays.extend(parts)
            owner.extend([number] * len(parts))
            sizes.append(sum(map(len, parts)))
        words = np.concatenate(arrays) if arrays else np.zeros(0, np.uint64)
        bounds = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        bits = max(int(np.ceil(np.log2(max(len(words), 1)))) + 1, 10)
        slots = np.zeros(1 << bits, np.int64)
        chain = np.zeros(len(words), np.int64)
        sieve = np.zeros(1 << bits, np.uint8)  # 8 bits a slot
        build_table(words, bounds, seed_words(ngram), slots, chain, sieve)
        return cls(
            ngram=ngram,
            words=words,
            bounds=bounds,
            owner=np.array(owner, np.int64),
            size=np.array(sizes, np.int64),
            slots=slots,
            chain=chain,
            sieve=sieve,
        )

    @property
    def too_short(self) -> int:
        """The number of items that are not looked for, as they have fewer than 8 words."""
        return int((self.size == 0).sum())

    def overlaps(self, batch: TextBatch, first_only: bool = False) -> list[Overlap]:
        """Every pair of a text and an item that overlap, by text and item; with `first_only` one for each text."""
        if not len(self.words) or not len(batch):
            return []
        longest = int(np.diff(batch.offsets).max()) // 2 + 2
        scratch = np.empty(longest, np.uint64), np.empty(longest, np.int64)
        table = (self.words, self.bounds, self.owner, self.slots, self.chain, self.sieve)
        room = len(batch) + 16
        while True:
            found = np.zeros((room, 4), np.int64)
            stamps = np.zeros(len(self.words), np.int64)
            last = np.full(len(self.size), -1, np.int64)
            many = find_overlaps(batch.data, batch.offsets, CLASSES, scratch, table, self.ngram, first_only, stamps, last, found)
            if many <= room:
                break
            room = many
        rows = sorted(map(tuple, found[:many].tolist()))
        return [Overlap(text=t, item=i, words=w, share=w / int(self.size[i]), start=s) for t, i, w, s in rows]

    def matches(self, text: str) -> list[Overlap]:
        """The items that one text overlaps with."""
        return self.overlaps(TextBatch.of([text]))


def seed_words(ngram: int) -> int:
    """Words of a half n-gram: of n words with one changed so many are left in a row."""
    return max(ngram // 2, 1)


def words_of(text: str) -> NDArray[np.uint64]:
    """The hashes of a text's words."""
    batch = TextBatch.of([text])
    hashes, places = np.empty(batch.num_bytes // 2 + 1, np.uint64), np.empty(batch.num_bytes // 2 + 1, np.int64)
    return hashes[: hash_words(batch.data, 0, batch.num_bytes, CLASSES, hashes, places)].copy()


def parts_of(texts: tuple[str, ...], ngram: int) -> list[NDArray[np.uint64]]:
    """The parts of an item that are long enough; all of them as one where none is."""
    least = min(SHORTEST, ngram)
    parts = [words for text in texts if len(words := words_of(text)) >= least]
    if not parts and len(texts) > 1 and len(words := words_of(" ".join(texts))) >= least:
        parts = [words]
    return parts

"""A small real data set for training tests: bytes as tokens, written by the data set's own contract."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ropewalk.datapipe.manifest import Split, TokenizerRecord
from tests.fakes.token_files import write_manifest_of, write_shard

END = 256
WORDS = [
    "the",
    "rope",
    "is",
    "laid",
    "from",
    "strands",
    "and",
    "the",
    "strands",
    "from",
    "yarns",
    "twisted",
    "in",
    "a",
    "long",
    "straight",
    "lane",
    "by",
    "one",
    "walker",
]


def make_dataset(folder: Path, *, num_documents: int = 200, seed: int = 0, vocabulary: int = 257) -> Path:
    """Sentences of a few words, three train shards and one validation shard."""
    random = np.random.default_rng(seed)
    quarters = [
        [" ".join(random.choice(WORDS, size=random.integers(8, 60))) for _ in range(num_documents // 4)] for _ in range(4)
    ]
    return _write_dataset(folder, quarters, vocabulary)


def make_text_dataset(folder: Path, texts: list[str]) -> Path:
    """Given texts, three train shards and a smaller validation shard."""
    held_out = max(1, len(texts) // 10)
    rest = texts[held_out:]
    return _write_dataset(folder, [rest[0::3], rest[1::3], rest[2::3], texts[:held_out]], 257)


def _write_dataset(folder: Path, parts: list[list[str]], vocabulary: int) -> Path:
    """The last part is for validation."""
    shards = []
    for number, documents in enumerate(parts):
        split: Split = "train" if number < len(parts) - 1 else "validation"
        name = f"{'shards' if split == 'train' else 'validation'}/part-{number if split == 'train' else 0:05d}.arrow"
        tokens = [np.array([*text.encode(), END], np.uint16) for text in documents]
        text_bytes = sum(len(text.encode()) for text in documents)
        ids = [f"{name}:{i}" for i in range(len(documents))]
        shards.append(write_shard(folder, name, split, tokens, ids=ids, text_bytes=text_bytes))
    write_tokenizer(folder / "tokenizer")
    record = TokenizerRecord(
        name="bytes", hash="xxh3:" + "0" * 31 + str(vocabulary % 10), vocabulary=vocabulary, end_of_document=END, version="0"
    )
    write_manifest_of(folder, shards, record)
    return folder


def write_tokenizer(folder: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # byte-level BPE without merges: token i is the i-th letter of the alphabet, in the order of bytes
    order = sorted(letters, key=_byte_of)
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(order)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)


def _byte_of(letter: str) -> int:
    """GPT-2's printable stand-ins: bytes that print are themselves, the others follow from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return ord(letter) if ord(letter) in printable else others[ord(letter) - 256]

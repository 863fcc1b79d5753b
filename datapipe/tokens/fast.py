"""A faster tokenizer, whose output is compared with the reference when it starts and for a piece of every batch."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ropewalk.cluster.errors import DataError

NAME = "fastokens"
CHECKED_CHARS = 512  # of one text per batch
HARD_TEXTS = (
    "",
    " ",
    "The quick brown fox, naïve; it's 3.14 (or 2,718)!\n\n\tif x[0] == 'y': return\r\n",
    "<|endoftext|> a<|endoftext|>b </s> <s> [UNK] <|im_start|>",
    "🪢👨‍👩‍👧‍👦👍🏽🇩🇪",
    "e\u0301\u0323 A\u030a \u1e9b\u0323 ﬁ ﷺ",
    "\u0645\u0631\u062d\u0628\u0627 \u202e\u0628\u0627\u0644\u202c \u05e9\u05dc\u05d5\u05dd\u200f",
    "\x00\x01\x7f\ufeff\u2028\u200b\u00a0\ufffd",
    "日本語と中文を한국어로 ไทย हिन्दी",
    "x" * 3000,
    " " * 500 + "\n" * 200 + "\t" * 50,
    "ab1" * 700,
    "\U0010ffff\U000e0001 \ud7ff",
)


class FastTokenizerError(DataError):
    """The faster tokenizer is missing, cannot read the tokenizer, or gives other tokens; the message is the reason."""


class FastTokenizer:
    """`fastokens` (on RAYON_NUM_THREADS threads), compared with `tokenizers` as the reference."""

    def __init__(self, description: str, reference: Tokenizer) -> None:
        try:
            import fastokens  # noqa: PLC0415 - there are platforms without it
        except ImportError as error:
            raise FastTokenizerError(f"{NAME} is not installed ({error})") from None
        self.version, self.reference = version(NAME), reference
        try:
            self.tokenizer: Any = fastokens.Tokenizer.from_json_str(description)
        except Exception as error:  # the library raises various types
            raise FastTokenizerError(f"{NAME} {self.version} cannot read this tokenizer ({error})") from None
        self.check((*HARD_TEXTS, *_texts_with_added_tokens(reference)))

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the concatenated tokens and the start of each text. Raises FastTokenizerError if they differ."""
        if texts:
            self.check([texts[len(texts) // 2][:CHECKED_CHARS]])
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        try:
            ids, offsets = self.tokenizer.encode_batch_flat(list(texts), add_special_tokens=False, split_special_tokens=True)
        except Exception as error:  # the library raises various types
            raise FastTokenizerError(f"{NAME} {self.version} cannot encode these documents ({error})") from None
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(np.int64)

    def check(self, texts: Sequence[str]) -> None:
        """Compare with `tokenizers`. Raises FastTokenizerError for the first text that differs."""
        ids, offsets = self._encode(texts)
        for at, encoding in enumerate(self.reference.encode_batch_fast(list(texts), add_special_tokens=False)):
            if encoding.ids != ids[offsets[at] : offsets[at + 1]].tolist():
                raise FastTokenizerError(f"{NAME} {self.version} and tokenizers disagree on {texts[at][:40]!r}")


def _texts_with_added_tokens(reference: Tokenizer) -> list[str]:
    """Return texts that hold the tokenizer's added and special tokens: alone, inside words, and in a row."""
    contents = [token.content for token in reference.get_added_tokens_decoder().values()][:100]
    return [*contents, "".join(contents), *(f"a {content}b{content} \n{content.upper()}" for content in contents)]

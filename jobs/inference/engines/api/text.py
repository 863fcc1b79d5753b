"""Convert tokens to text as they arrive, without partial characters or parts of a stop text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ropewalk.jobs.inference.scoring.stops import Stops, special_tokens

UNFINISHED = "�"  # a decoder's replacement for an incomplete last character
MOST_UNFINISHED_TOKENS = 8  # a character has at most four bytes; more incomplete tokens are not UTF-8


class Vocabulary:
    """Text and bytes of tokens, by a transformers tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.specials = special_tokens(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self._bytes = _byte_level() if "ByteLevel" in str(type(self._backend.decoder)) + str(self._backend.decoder) else {}

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without special ones."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))

    def piece(self, token: int) -> tuple[str, list[int]]:
        """Return the text of one token, special or not, and its bytes."""
        word = self._backend.id_to_token(token)
        text = str(self._backend.decode([token], skip_special_tokens=False))
        if word is None:
            return "", []
        if UNFINISHED not in text:
            return text, list(text.encode())
        if len(word) == 6 and word.startswith("<0x"):
            return text, [int(word[3:5], 16)]
        if self._bytes and all(letter in self._bytes for letter in word):
            return text, [self._bytes[letter] for letter in word]
        return text, list(text.encode())


class Piece(NamedTuple):
    """Text that can be shown now."""

    text: str
    stopped: bool  # a stop text was reached; the answer ends


class TextStream:
    """The growing text of an answer. The same tokens give the same pieces in every process."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str], prompt: Sequence[int]) -> None:
        """`prompt` are the last tokens before the answer, on which the spelling of its first token may depend."""
        self._vocabulary, self._stops = vocabulary, Stops(stops, vocabulary.specials)
        self._tokens = list(prompt[-MOST_UNFINISHED_TOKENS:])
        self._begin, self._read = 0, len(self._tokens)  # tokens before `_read` were shown; decoding starts at `_begin`
        self._held = ""  # possible beginning of a stop text

    def push(self, token: int, text: str | None = None) -> Piece:
        """Add a token, or the text of unknown tokens; return the text that can be shown now."""
        if text is not None:
            self._tokens, self._begin, self._read = [], 0, 0
            return self._show(text, final=False)
        letter = self._stops.letter(token)
        before = self._fresh(final=True) if letter else ""  # an incomplete character before a special token stays incomplete
        self._tokens.append(token)
        return self._show((before + letter) or self._fresh(final=False), final=False)

    def end(self) -> Piece:
        """Return the text held back, as no token follows."""
        return self._show(self._fresh(final=True), final=True)

    def _fresh(self, *, final: bool) -> str:
        before = self._vocabulary.text(self._tokens[self._begin : self._read])
        text = self._vocabulary.text(self._tokens[self._begin :])
        waits = text.endswith(UNFINISHED) and len(self._tokens) - self._read < MOST_UNFINISHED_TOKENS
        if (waits and not final) or len(text) <= len(before):
            return ""
        self._begin, self._read = self._read, len(self._tokens)
        return text[len(before) :]

    def _show(self, fresh: str, *, final: bool) -> Piece:
        text = self._held + fresh
        if self._stops.occur_in(text):
            self._held = ""
            return Piece(self._stops.cut(text), True)
        num_held = 0 if final else max((_overlap(text, stop) for stop in self._stops.texts), default=0)
        self._held = text[len(text) - num_held :]
        return Piece(self._stops.visible(text[: len(text) - num_held]), False)


def _overlap(text: str, stop: str) -> int:
    """Return how many letters at the end of a text are the beginning of a stop text."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


def _byte_level() -> dict[str, int]:
    """Return GPT-2's letters for bytes: printable bytes are themselves, the others follow from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}

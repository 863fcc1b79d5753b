"""Stop texts of an answer. They may contain special tokens, although the visible text has none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_FIRST_LETTER = 0xDC00  # a lone surrogate, which never occurs in decoded text


class Stops:
    """Stop texts prepared for searching: each special token is one private letter in the searched text."""

    def __init__(self, texts: Sequence[str], specials: Mapping[int, str]) -> None:
        """`specials` maps the ids of special tokens to their spelling."""
        nonempty = [text for text in texts if text]
        spellings, self._letters = nonempty, dict[int, str]()
        for token, written in sorted(specials.items(), key=lambda entry: -len(entry[1])):
            if written and any(written in text for text in nonempty):
                letter = self._letters[token] = chr(_FIRST_LETTER + len(self._letters))
                spellings = [text.replace(written, letter) for text in spellings]
        self.texts = tuple(dict.fromkeys((*nonempty, *spellings)))  # also unchanged: a model may spell a special token out
        self._hidden = {ord(letter): None for letter in self._letters.values()}

    def letter(self, token: int) -> str:
        """Return the letter that represents a special token in the searched text, or an empty string."""
        return self._letters.get(token, "")

    def search_text(self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """Return the text of tokens in which stop texts are searched; `decode` leaves special tokens out."""
        text, parts, end = decode(tokens), list[str](), 0
        for index, token in enumerate(tokens):
            if letter := self.letter(token):
                before = _common_length(text, decode(tokens[:index]))
                parts += [text[end:before], letter]
                end = max(end, before)
        return "".join(parts) + text[end:]

    def visible(self, text: str) -> str:
        """Return searched text without the letters of special tokens."""
        return text.translate(self._hidden) if self._hidden else text

    def occur_in(self, text: str) -> bool:
        """Return True if a searched text contains one of the stop texts."""
        return any(stop in text for stop in self.texts)

    def cut(self, text: str) -> str:
        """Return the visible text before the first stop text of a searched text."""
        return self.visible(cut(text, self.texts))


def _common_length(text: str, other: str) -> int:
    """Return the length of the common beginning of two texts."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((index for index, (mine, theirs) in pairs if mine != theirs), min(len(text), len(other)))


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first of the stops."""
    for stop in stops:
        text = text.split(stop, maxsplit=1)[0] if stop else text
    return text


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens of a transformers tokenizer and their spelling, by id."""
    return {number: str(token.content) for number, token in tokenizer.added_tokens_decoder.items() if token.special}

"""Texts before which an answer ends. Special tokens may be part of them, though the text that is shown has none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_FIRST_LETTER = 0xDC00  # a surrogate by itself, which no decoded text has


class Stops:
    """Stops as they are searched: a special token that is part of one is one letter of the searched text, and not shown."""

    def __init__(self, texts: Sequence[str], specials: Mapping[int, str]) -> None:
        """`specials` are the special tokens by number, and how they are written."""
        given = [text for text in texts if text]
        searched, self._letters = given, dict[int, str]()
        for token, written in sorted(specials.items(), key=lambda one: -len(one[1])):
            if written and any(written in text for text in given):
                letter = self._letters[token] = chr(_FIRST_LETTER + len(self._letters))
                searched = [text.replace(written, letter) for text in searched]
        self.texts = tuple(dict.fromkeys((*given, *searched)))  # as they are, too: a model may spell them
        self._hidden = {ord(letter): None for letter in self._letters.values()}

    def letter(self, token: int) -> str:
        """What stands for a token in the searched text beside its own text; empty: nothing."""
        return self._letters.get(token, "")

    def searched(self, tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
        """The text of tokens in which stops are searched; `decode` leaves special tokens out."""
        text, parts, end = decode(tokens), list[str](), 0
        for place, token in enumerate(tokens):
            if letter := self.letter(token):
                before = _alike(text, decode(tokens[:place]))
                parts += [text[end:before], letter]
                end = max(end, before)
        return "".join(parts) + text[end:]

    def shown(self, text: str) -> str:
        """Searched text without the letters that stand for special tokens."""
        return text.translate(self._hidden) if self._hidden else text

    def found_in(self, text: str) -> bool:
        """Whether a searched text has one of the stops."""
        return any(stop in text for stop in self.texts)

    def cut(self, text: str) -> str:
        """What is shown of a searched text: what lies before the first stop."""
        return self.shown(cut(text, self.texts))


def _alike(text: str, other: str) -> int:
    """How many letters two texts have in common at their beginning."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(text), len(other)))


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    for stop in stops:
        text = text.split(stop, maxsplit=1)[0] if stop else text
    return text


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The special tokens of a tokenizer of transformers, and how they are written."""
    return {number: str(token.content) for number, token in tokenizer.added_tokens_decoder.items() if token.special}

"""The tokens behind a piece of text that llama.cpp shows, of which it names the last one alone.

Its server says nothing of a token after which the text ends within a character: that token's bytes are shown with the token that
completes the character, and only this one's id is told. The others are found by their bytes.
"""

from collections.abc import Iterator, Sequence

from ropewalk.jobs.inference.engines.api.text import UNFINISHED, Vocabulary

MOST_HIDDEN = 3  # a character has at most four bytes, and each token at least one


class HiddenTokens:
    """Finds tokens by their bytes."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self._pieces = [bytes(vocabulary.piece(token)[1]) for token in range(size)]
        self._by_bytes: dict[bytes, int] = {}
        for token, piece in enumerate(self._pieces):
            self._by_bytes.setdefault(piece, token)

    def find(self, text: str, last: int, hidden: int) -> list[int] | None:
        """The tokens before the last one; None where the text does not say which they were."""
        content, tail = text.encode(), self._pieces[last]
        if hidden > MOST_HIDDEN or UNFINISHED in text or not content.endswith(tail):
            return None
        found = list(self._cuts(content[: len(content) - len(tail)], 0, hidden))
        return list(found[0]) if len(found) == 1 else None

    def _cuts(self, content: bytes, begin: int, count: int) -> Iterator[Sequence[int]]:
        """All ways to cut the rest of the content into so many tokens, after each of which it ends within a character."""
        for end in range(begin + 1, len(content) + 1) if count > 1 else (len(content),):
            token = self._by_bytes.get(content[begin:end])
            if token is None or not _within_a_character(content[:end]):
                continue
            if count == 1:
                yield (token,)
            else:
                yield from ((token, *rest) for rest in self._cuts(content, end, count - 1))


def _within_a_character(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False

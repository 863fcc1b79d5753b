"""Recover the tokens of a text of which llama.cpp names only the last one.

Its server does not report a token after which the text ends inside a character: the token's bytes are shown with the token that
completes the character, and only the latter's id is reported. The others are found by their bytes.
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
        """Return the tokens before the last one, or None if the text does not determine them."""
        content, tail = text.encode(), self._pieces[last]
        if hidden > MOST_HIDDEN or UNFINISHED in text or not content.endswith(tail):
            return None
        solutions = list(self._cuts(content[: len(content) - len(tail)], 0, hidden))
        return list(solutions[0]) if len(solutions) == 1 else None

    def _cuts(self, content: bytes, begin: int, count: int) -> Iterator[Sequence[int]]:
        """Yield all ways to split the rest into `count` tokens, after each of which the text ends inside a character."""
        for end in range(begin + 1, len(content) + 1) if count > 1 else (len(content),):
            token = self._by_bytes.get(content[begin:end])
            if token is None or not _ends_inside_character(content[:end]):
                continue
            if count == 1:
                yield (token,)
            else:
                yield from ((token, *rest) for rest in self._cuts(content, end, count - 1))


def _ends_inside_character(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False

"""Tokens that llama.cpp does not name, found by their bytes."""

import pytest

from ropewalk.jobs.inference.engines.llamacpp.tokens import HiddenTokens

PIECES = [b"a", b" ", b" \xf0\x9f", b"\x98", b"\x80", b"\xf0", b"\x9f", b" \xf0", b"\x9f\x98", b"\xe6\xbc", b"\xa2", b"\xff"]


class Pieces:
    def piece(self, token: int) -> tuple[str, list[int]]:
        return "", list(PIECES[token])


@pytest.mark.parametrize(
    ("text", "last", "hidden", "expected"),
    [
        ("漢", 10, 1, [9]),
        (" 😀", 4, 2, None),  # " \xf0\x9f" "\x98", or " \xf0" "\x9f\x98"
        ("😀", 4, 2, [5, 8]),
        ("😀", 4, 3, [5, 6, 3]),
        ("�a", 0, 1, None),
        ("aa", 0, 1, None),  # after the first "a" the text does not end within a character
    ],
)
def test_hidden_tokens(text: str, last: int, hidden: int, expected: list[int] | None) -> None:
    assert HiddenTokens(Pieces(), len(PIECES)).find(text, last, hidden) == expected  # type: ignore[arg-type]

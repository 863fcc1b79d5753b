"""English tokens in plain Python: what the compiled ones must equal."""

import re
import unicodedata
from functools import lru_cache

from ropewalk.datapipe.text.token_marks import ABBREVIATIONS, DASHES, ELLIPSIS, NO_ADDRESS_ENDS, PUNCTUATION, QUOTES

ADDRESS = re.compile(r"[A-Za-z]+://|[wW]{3}\.|[\w.-]+@[\w-]+\.\w")


def is_mark(character: str) -> bool:
    return character in PUNCTUATION or character in QUOTES or character in DASHES or is_icon(character)


def is_icon(character: str) -> bool:
    return character == ELLIPSIS or unicodedata.category(character) == "So"


def front(text: str) -> int:
    if text.startswith(".."):
        return len(text) - len(text.lstrip("."))
    if is_mark(text[0]) or text[0] in "\u00a7%=" or unicodedata.category(text[0]) == "Sc":
        return 1
    return int(text[0] == "+" and not text[1:2].isdigit())


def end(text: str) -> int:
    last, before = text[-1], text[-2:-1]
    if text.endswith(".."):
        return len(text) - len(text.rstrip("."))
    if text.lower().endswith(("'s", "\u2019s")) and last in "sS":
        return 2
    if is_mark(last):
        return 1
    if not before:
        return 0
    if last == ".":
        capitals = before.isupper() and text[-3:-2].isupper()
        return int(capitals or before.islower() or before.isdigit() or before in "%\u00b2-+" or before in PUNCTUATION + QUOTES)
    return int((last in "+%" or unicodedata.category(last) == "Sc") and before.isdigit())


def cut_at(text: str, at: int) -> int:
    """Number of characters at a position inside a word that form a token."""
    here, before, behind = text[at], text[at - 1], text[at + 1]
    if here == ".":
        if behind == ".":
            return len(text[at:]) - len(text[at:].lstrip("."))
        return int((before.islower() or before in QUOTES) and (behind.isupper() or behind in QUOTES))
    if is_icon(here) or (here in "+-*^" and before.isdigit() and (behind.isdigit() or behind == "-")):
        return 1
    if here == ",":
        return int(before.isalpha() and behind.isalpha())
    if here in f"-~{DASHES}" and before.isalpha():
        run = re.match(rf"{re.escape(here)}{{1,3}}", text[at:])
        assert run
        count = len(run[0])
        return count if text[at + count : at + count + 1].isalpha() and (here == "-" or count == 1) else 0
    return int(here in ":<>=/" and (before.isalpha() or before.isdigit()) and behind.isalpha())


def inside(text: str) -> list[str]:
    results, start, at = [], 0, 1
    while at < len(text) - 1:
        if count := cut_at(text, at):
            results += [text[start:at], text[at : at + count]]
            start = at = at + count
        at += 1
    return [part for part in [*results, text[start:]] if part]


def whole(text: str) -> bool:
    return text in ABBREVIATIONS or (text[-1] not in NO_ADDRESS_ENDS and bool(ADDRESS.match(text)))


@lru_cache(100_000)
def chunk_tokens(text: str) -> tuple[str, ...]:
    head: list[str] = []
    tail: list[str] = []
    while text and not whole(text):
        if count := front(text):
            head.append(text[:count])
            text = text[count:]
        elif count := end(text):
            tail.insert(0, text[-count:])
            text = text[:-count]
        else:
            break
    middle = [text] if text else []
    if text and not whole(text):
        short = re.fullmatch(r"(.*\w)([nN]['\u2019][tT]|['\u2019](?:[rRvV][eE]|[lL]{2}|[mMdD]))", text, re.DOTALL)
        middle = [*inside(short[1]), short[2]] if short else inside(text)
    return (*head, *middle, *tail)


def tokens(text: str) -> list[str]:
    return [token for chunk in text.split() for token in chunk_tokens(chunk)]

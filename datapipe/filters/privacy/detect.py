"""Detection of personal data: candidates by a fast pass, each judged by shape, checksum and the words before it."""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_args

import numpy as np

from ropewalk.datapipe.filters.privacy.announce import LOOK_BACK, announces_id, announces_phone
from ropewalk.datapipe.filters.privacy.banking import find_iban, is_card
from ropewalk.datapipe.filters.privacy.filter import Kind
from ropewalk.datapipe.filters.privacy.kernels import AT_SIGN, CLASSES, COLONS, LETTERED, find_candidates
from ropewalk.datapipe.filters.privacy.national_ids import find_lettered, is_national_id
from ropewalk.datapipe.filters.privacy.phones import is_phone
from ropewalk.datapipe.text.batch import TextBatch

KINDS: tuple[Kind, ...] = get_args(Kind)

LOCAL = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?$")
DOMAIN = re.compile(
    rb"(?:(?:[A-Za-z0-9-]|[\xc3-\xc9][\x80-\xbf]){1,63}\.){1,8}(?:[A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,59})(?![A-Za-z0-9_-])"
)
IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)")
VERSION = re.compile(r"(?:\bv|version|release|§|section|chapter|kernel|oid)[ .:=]*$", re.IGNORECASE)
EXTENSION = re.compile(r" ?(?:x|ext\.? ?)\d{1,6}(?!\w)")
MOST_GROUPS = 16  # maximum groups of digits in a number; longer runs are tables
GLUE = frozenset("-./_#@$%&~\\^+*")  # after one of these, a number is part of a longer word


class Span(NamedTuple):
    """Personal data in a text; `start` and `end` in characters of a text, in bytes of a batch."""

    kind: Kind
    start: int
    end: int


def find(text: str, kinds: Iterable[Kind] = KINDS) -> list[Span]:
    """Find all personal data of these kinds in one text, by position, without overlaps."""
    batch = TextBatch.of([text])
    spans = [span for _, span in find_in(batch, kinds)]
    if text.isascii() or not spans:
        return spans
    raw = batch.raw(0)
    return [Span(kind, len(raw[:start].decode()), len(raw[:end].decode())) for kind, start, end in spans]


def find_in(batch: TextBatch, kinds: Iterable[Kind] = KINDS) -> Iterator[tuple[int, Span]]:
    """Yield (index of the text, span in bytes of the batch) of all personal data, by position, without overlaps."""
    wanted = frozenset(kinds)
    room = 1024 + batch.num_bytes // 64
    while True:
        rows = np.empty((room, 4), np.int64)
        many = find_candidates(batch.data, batch.offsets, CLASSES, rows)
        if many <= room:
            break
        room = many
    data = batch.data.data
    free = 0  # end of the last span
    for kind, text, start, end in rows[:many].tolist():
        if end <= free:
            continue
        first, last = int(batch.offsets[text]), int(batch.offsets[text + 1])
        window = _Window(data, max(first, free), last)
        for span in _judge(window, kind, max(start, free), end, wanted):
            yield text, span
            free = span.end


class _Window:
    """The part of a text that may be read to judge a candidate: from the end of the last span to the end of the text."""

    __slots__ = ("data", "first", "last")

    def __init__(self, data: memoryview, first: int, last: int) -> None:
        self.data, self.first, self.last = data, first, last

    def raw(self, start: int, end: int) -> bytes:
        return bytes(self.data[max(start, self.first) : min(end, self.last)])

    def letters(self, start: int, end: int) -> str:
        return self.raw(start, end).decode("latin-1")

    def before(self, start: int) -> str:
        return self.raw(start - LOOK_BACK, start).decode(errors="ignore")


def _judge(window: _Window, kind: int, start: int, end: int, wanted: frozenset[Kind]) -> Iterator[Span]:
    if kind == AT_SIGN:
        yield from _email(window, start) if "email" in wanted else ()
    elif kind == COLONS:
        yield from _ip_version_6(window, start, end) if "ip" in wanted else ()
    elif kind == LETTERED:
        yield from _judge_lettered(window, start, wanted)
    else:
        yield from _number(window, start, end, wanted)


def _email(window: _Window, at: int) -> Iterator[Span]:
    local = LOCAL.search(window.raw(at - 64, at))
    domain = DOMAIN.match(window.raw(at + 1, at + 256)) if local else None
    if local and domain:
        yield Span("email", at - len(local.group()), at + 1 + domain.end())


def _ip_version_6(window: _Window, start: int, end: int) -> Iterator[Span]:
    word = window.letters(start, end).rstrip(".:")
    around = window.letters(start - 1, start) + window.letters(start + len(word), start + len(word) + 1)
    if any(c.isascii() and (c.isalnum() or c == "_") for c in around):
        return
    try:
        address = ipaddress.IPv6Address(word)
    except ValueError:
        return
    if not (address.is_loopback or address.is_unspecified):
        yield Span("ip", start, start + len(word))


def _judge_lettered(window: _Window, start: int, wanted: frozenset[Kind]) -> Iterator[Span]:
    text = window.letters(start, start + 48)
    before = window.letters(start - 1, start)
    if before in GLUE:
        return
    if "iban" in wanted and (length := find_iban(text)):
        yield Span("iban", start, start + length)
    elif "national_id" in wanted and (length := find_lettered(text)):
        yield Span("national_id", start, start + length)


def _number(window: _Window, start: int, end: int, wanted: frozenset[Kind]) -> Iterator[Span]:
    """Judge a run of digits and separators: as a whole, else the longest parts that are personal data."""
    run = window.letters(start, end)
    if run.count(".") >= 3 and "ip" in wanted:
        addresses = list(_ip_version_4(window, start, run))
        if addresses:
            yield from addresses
            return
    lead = window.letters(start - 2, start)
    opened = len(lead) - len(lead.rstrip("+(")) if not (lead.startswith("+(") and lead == "+(") else 2
    groups = [(m.start() + start, m.end() + start) for m in re.finditer(r"\S+", run)]
    if opened:
        groups[0] = (groups[0][0] - opened, groups[0][1])
    if len(groups) <= MOST_GROUPS:
        yield from _parts(window, groups, wanted, whole=True)


def _parts(window: _Window, groups: list[tuple[int, int]], wanted: frozenset[Kind], whole: bool) -> Iterator[Span]:
    """Yield the longest run of groups that is personal data, and those before and after it; `whole`: no group was cut off."""
    for count in range(len(groups), 0, -1):
        for first in range(len(groups) - count + 1):
            span = _part(window, groups[first][0], groups[first + count - 1][1], wanted, whole and count == len(groups))
            if span:
                yield from _parts(window, groups[:first], wanted, whole=False)
                yield span
                yield from _parts(window, groups[first + count :], wanted, whole=False)
                return


def _part(window: _Window, start: int, end: int, wanted: frozenset[Kind], whole: bool) -> Span | None:
    text = window.letters(start, end)
    trimmed = text.rstrip(" -./(")
    if trimmed.endswith(")") and "(" not in trimmed:
        trimmed = trimmed.rstrip(")")
    if trimmed.startswith("(") and ")" not in trimmed:
        trimmed, start = trimmed[1:], start + 1
    digits = sum(map(str.isdigit, trimmed))
    if not 7 <= digits <= 19:
        return None
    end = start + len(trimmed)
    before, after = window.letters(start - 1, start), window.letters(end, end + 12)
    if before in GLUE or (before.isascii() and before.isalnum()):
        return None
    if after[:1].isascii() and after[:1].isupper() and "national_id" in wanted and (length := find_lettered(trimmed + after)):
        return Span("national_id", start, start + length)
    extension = EXTENSION.match(after) if after[:1] in "xXe " else None
    if after[:1].isascii() and (after[:1].isalnum() or after[:1] == "_") and not extension:
        return None
    if "card" in wanted and digits >= 12 and is_card(trimmed):
        return Span("card", start, end)
    before_number = window.before(start)
    phone_announced, id_announced = announces_phone(before_number), announces_id(before_number)
    if (
        "national_id" in wanted
        and 9 <= digits <= 18
        and (id_announced or not phone_announced)
        and is_national_id(trimmed, id_announced, whole)
    ):
        return Span("national_id", start, end)
    if "phone" in wanted and digits <= 15 and is_phone(trimmed, phone_announced, whole):
        return Span("phone", start, end + (extension.end() if extension else 0))
    return None


def _ip_version_4(window: _Window, start: int, run: str) -> Iterator[Span]:
    for match in IPV4.finditer(run):
        octets = match.group().split(".")
        begin, end = start + match.start(), start + match.end()
        if (
            any(int(o) > 255 or (len(o) > 1 and o[0] == "0") for o in octets)
            or octets[0] in {"0", "127"}  # loopback and unspecified
            or octets[:2] == ["255", "255"]
        ):
            continue
        around = window.letters(begin - 1, begin), window.letters(end, end + 1)
        if any(c.isascii() and (c.isalnum() or c in "_-") for c in around) or VERSION.search(before := window.before(begin)):
            continue
        if (not before or before.endswith("\n")) and window.letters(end, end + 2) == ". ":
            continue  # a section number
        yield Span("ip", begin, end)

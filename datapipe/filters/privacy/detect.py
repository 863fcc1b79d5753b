"""Personal data in texts: candidates by a fast pass, each judged by shape, checksum and the words before it."""

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
MOST_GROUPS = 16  # of a number that is looked at as a whole; longer ones are tables
GLUE = frozenset("-./_#@$%&~\\^+*")  # with one of these before it a number belongs to a longer word


class Span(NamedTuple):
    """Personal data in a text; `start` and `end` in characters of a text, in bytes of a batch."""

    kind: Kind
    start: int
    end: int


def find(text: str, kinds: Iterable[Kind] = KINDS) -> list[Span]:
    """All personal data of these kinds in one text, by place, without overlaps."""
    batch = TextBatch.of([text])
    spans = [span for _, span in find_in(batch, kinds)]
    if text.isascii() or not spans:
        return spans
    raw = batch.raw(0)
    return [Span(kind, len(raw[:start].decode()), len(raw[:end].decode())) for kind, start, end in spans]


def find_in(batch: TextBatch, kinds: Iterable[Kind] = KINDS) -> Iterator[tuple[int, Span]]:
    """(text, span in bytes of the batch) of all personal data, by place, without overlaps."""
    wanted = frozenset(kinds)
    room = 1024 + batch.num_bytes // 64
    while True:
        found = np.empty((room, 4), np.int64)
        many = find_candidates(batch.data, batch.offsets, CLASSES, found)
        if many <= room:
            break
        room = many
    data = batch.data.data
    free = 0  # where what was found last ends
    for kind, text, start, end in found[:many].tolist():
        if end <= free:
            continue
        first, last = int(batch.offsets[text]), int(batch.offsets[text + 1])
        place = _Place(data, max(first, free), last)
        for span in _judge(place, kind, max(start, free), end, wanted):
            yield text, span
            free = span.end


class _Place:
    """A text of which a part is judged: it ends where an earlier span ends and where the text does."""

    __slots__ = ("data", "first", "last")

    def __init__(self, data: memoryview, first: int, last: int) -> None:
        self.data, self.first, self.last = data, first, last

    def raw(self, start: int, end: int) -> bytes:
        return bytes(self.data[max(start, self.first) : min(end, self.last)])

    def letters(self, start: int, end: int) -> str:
        """Bytes as characters, one each."""
        return self.raw(start, end).decode("latin-1")

    def before(self, start: int) -> str:
        """The words before a place."""
        return self.raw(start - LOOK_BACK, start).decode(errors="ignore")


def _judge(place: _Place, kind: int, start: int, end: int, wanted: frozenset[Kind]) -> Iterator[Span]:
    if kind == AT_SIGN:
        yield from _email(place, start) if "email" in wanted else ()
    elif kind == COLONS:
        yield from _ip_version_6(place, start, end) if "ip" in wanted else ()
    elif kind == LETTERED:
        yield from _lettered(place, start, wanted)
    else:
        yield from _number(place, start, end, wanted)


def _email(place: _Place, at: int) -> Iterator[Span]:
    local = LOCAL.search(place.raw(at - 64, at))
    domain = DOMAIN.match(place.raw(at + 1, at + 256)) if local else None
    if local and domain:
        yield Span("email", at - len(local.group()), at + 1 + domain.end())


def _ip_version_6(place: _Place, start: int, end: int) -> Iterator[Span]:
    word = place.letters(start, end).rstrip(".:")
    around = place.letters(start - 1, start) + place.letters(start + len(word), start + len(word) + 1)
    if any(c.isascii() and (c.isalnum() or c == "_") for c in around):
        return
    try:
        address = ipaddress.IPv6Address(word)
    except ValueError:
        return
    if not (address.is_loopback or address.is_unspecified):
        yield Span("ip", start, start + len(word))


def _lettered(place: _Place, start: int, wanted: frozenset[Kind]) -> Iterator[Span]:
    text = place.letters(start, start + 48)
    before = place.letters(start - 1, start)
    if before in GLUE:
        return
    if "iban" in wanted and (length := find_iban(text)):
        yield Span("iban", start, start + length)
    elif "national_id" in wanted and (length := find_lettered(text)):
        yield Span("national_id", start, start + length)


def _number(place: _Place, start: int, end: int, wanted: frozenset[Kind]) -> Iterator[Span]:
    """Judge a run of digits and separators: as a whole, else the longest parts of it that are something."""
    run = place.letters(start, end)
    if run.count(".") >= 3 and "ip" in wanted:
        addresses = list(_ip_version_4(place, start, run))
        if addresses:
            yield from addresses
            return
    lead = place.letters(start - 2, start)
    opened = len(lead) - len(lead.rstrip("+(")) if not (lead.startswith("+(") and lead == "+(") else 2
    groups = [(m.start() + start, m.end() + start) for m in re.finditer(r"\S+", run)]
    if opened:
        groups[0] = (groups[0][0] - opened, groups[0][1])
    if len(groups) <= MOST_GROUPS:
        yield from _parts(place, groups, wanted, whole=True)


def _parts(place: _Place, groups: list[tuple[int, int]], wanted: frozenset[Kind], whole: bool) -> Iterator[Span]:
    """The longest run of groups that is something, and then what stands before and after it; `whole`: no group was cut off."""
    for count in range(len(groups), 0, -1):
        for first in range(len(groups) - count + 1):
            span = _part(place, groups[first][0], groups[first + count - 1][1], wanted, whole and count == len(groups))
            if span:
                yield from _parts(place, groups[:first], wanted, whole=False)
                yield span
                yield from _parts(place, groups[first + count :], wanted, whole=False)
                return


def _part(place: _Place, start: int, end: int, wanted: frozenset[Kind], whole: bool) -> Span | None:
    text = place.letters(start, end)
    trimmed = text.rstrip(" -./(")
    if trimmed.endswith(")") and "(" not in trimmed:
        trimmed = trimmed.rstrip(")")
    if trimmed.startswith("(") and ")" not in trimmed:
        trimmed, start = trimmed[1:], start + 1
    digits = sum(map(str.isdigit, trimmed))
    if not 7 <= digits <= 19:
        return None
    end = start + len(trimmed)
    before, after = place.letters(start - 1, start), place.letters(end, end + 12)
    if before in GLUE or (before.isascii() and before.isalnum()):
        return None
    if after[:1].isascii() and after[:1].isupper() and "national_id" in wanted and (length := find_lettered(trimmed + after)):
        return Span("national_id", start, start + length)
    extension = EXTENSION.match(after) if after[:1] in "xXe " else None
    if after[:1].isascii() and (after[:1].isalnum() or after[:1] == "_") and not extension:
        return None
    if "card" in wanted and digits >= 12 and is_card(trimmed):
        return Span("card", start, end)
    words = place.before(start)
    called, named = announces_phone(words), announces_id(words)
    if "national_id" in wanted and 9 <= digits <= 18 and (named or not called) and is_national_id(trimmed, named, whole):
        return Span("national_id", start, end)
    if "phone" in wanted and digits <= 15 and is_phone(trimmed, called, whole):
        return Span("phone", start, end + (extension.end() if extension else 0))
    return None


def _ip_version_4(place: _Place, start: int, run: str) -> Iterator[Span]:
    for match in IPV4.finditer(run):
        octets = match.group().split(".")
        begin, end = start + match.start(), start + match.end()
        if (
            any(int(o) > 255 or (len(o) > 1 and o[0] == "0") for o in octets)
            or octets[0] in {"0", "127"}  # this machine, or none
            or octets[:2] == ["255", "255"]
        ):
            continue
        around = place.letters(begin - 1, begin), place.letters(end, end + 1)
        if any(c.isascii() and (c.isalnum() or c in "_-") for c in around) or VERSION.search(before := place.before(begin)):
            continue
        if (not before or before.endswith("\n")) and place.letters(end, end + 2) == ". ":
            continue  # the number of a section
        yield Span("ip", begin, end)

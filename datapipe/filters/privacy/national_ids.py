"""Identity numbers of states, by shape, date and checksum; those with a weak checksum only where a word announces them."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ropewalk.datapipe.filters.privacy.checksums import iso_7064_11_10, luhn, verhoeff, weighted

ODD_VALUES = [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23]
ITALIAN_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", ODD_VALUES[:10] + ODD_VALUES, strict=True))


def _date(month: str, day: str) -> bool:
    return 1 <= int(month) <= 12 and 1 <= int(day) <= 31


def _united_states(s: str) -> bool:
    return s[:3] not in {"000", "666"} and s[3:5] != "00" and s[5:] != "0000"


def _spain(s: str) -> bool:
    number = s[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == s[-1]


def _italy(s: str) -> bool:
    total = sum(ITALIAN_ODD[c] if at % 2 == 0 else int(c, 36) - (10 if c.isalpha() else 0) for at, c in enumerate(s[:15]))
    return chr(ord("A") + total % 26) == s[15]


def _france(s: str) -> bool:
    number = s[:13].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and 97 - int(number) % 97 == int(s[13:])


def _poland(s: str) -> bool:
    month = int(s[2:4]) % 20
    return 1 <= month <= 12 and 1 <= int(s[4:6]) <= 31 and -weighted(s, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10 == int(s[10])


def _brazil(s: str) -> bool:
    first = weighted(s, range(10, 1, -1)) * 10 % 11 % 10
    second = weighted(s, range(11, 1, -1)) * 10 % 11 % 10
    return len(set(s)) > 1 and (first, second) == (int(s[9]), int(s[10]))


def _turkey(s: str) -> bool:
    odd, even = sum(map(int, s[0:9:2])), sum(map(int, s[1:8:2]))
    return s[0] != "0" and (odd * 7 - even) % 10 == int(s[9]) and sum(map(int, s[:10])) % 10 == int(s[10])


def _china(s: str) -> bool:
    check = "10X98765432"[weighted(s, (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)) % 11]
    return s[6:8] in {"18", "19", "20"} and _date(s[10:12], s[12:14]) and check == s[17]


def _korea(s: str) -> bool:
    return s[6] in "12345678"  # neither date nor checksum: since 2020 the last six digits are drawn


def _sweden(s: str) -> bool:
    return 1 <= int(s[-8:-6]) <= 12 and 1 <= int(s[-6:-4]) % 60 <= 31 and luhn(s[-10:])


def _finland(s: str) -> bool:
    digits = s[:6] + s[7:10]
    return _date(s[2:4], s[:2]) and "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(digits) % 31] == s[10]


def _norway(s: str) -> bool:
    first = -weighted(s, (3, 7, 6, 1, 8, 9, 4, 5, 2)) % 11
    second = -weighted(s, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return 1 <= int(s[:2]) % 40 <= 31 and 1 <= int(s[2:4]) % 40 <= 12 and (first, second) == (int(s[9]), int(s[10]))


def _denmark(s: str) -> bool:
    return _date(s[2:4], s[:2])


def _czechia(s: str) -> bool:
    month = int(s[2:4]) % 50
    return (1 <= month <= 12 or 21 <= month <= 32) and 1 <= int(s[4:6]) <= 31 and int(s) % 11 in {0, 10}


def _belgium(s: str) -> bool:
    return int(s[9:]) in {97 - int(s[:9]) % 97, 97 - int("2" + s[:9]) % 97} and int(s[2:4]) <= 12


def _netherlands(s: str) -> bool:
    return (weighted(s, range(9, 1, -1)) - int(s[8])) % 11 == 0


def _portugal(s: str) -> bool:
    return s[0] in "1235689" and (11 - weighted(s, range(9, 1, -1)) % 11) % 11 % 10 == int(s[8])


def _switzerland(s: str) -> bool:
    return -weighted(s, (1, 3) * 6) % 10 == int(s[12])


def _russia(s: str) -> bool:
    first = weighted(s, (7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10
    second = weighted(s, (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10
    return (first, second) == (int(s[10]), int(s[11]))


def _japan(s: str) -> bool:
    rest = weighted(s, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return (0 if rest <= 1 else 11 - rest) == int(s[11])


def _mexico(s: str) -> bool:
    return _date(s[6:8], s[8:10])


def _always(_: str) -> bool:
    return True


@dataclass(frozen=True)
class NationalId:
    """One state's number: its shape, the check of its digits and letters, and whether a word must announce it."""

    country: str
    shape: re.Pattern[str]
    check: Callable[[str], bool]
    announced: bool = False


def _number(country: str, shape: str, check: Callable[[str], bool], announced: bool = False) -> NationalId:
    return NationalId(country, re.compile(shape), check, announced)


NUMERIC = (
    _number("US", r"\d{3}-\d\d-\d{4}", _united_states),
    _number("US", r"\d{9}|\d{3} \d\d \d{4}", _united_states, announced=True),
    _number("FR", r"[12] ?\d\d ?[0-9]\d ?\d\d ?\d{3} ?\d{3} ?\d\d", _france),
    _number("PL", r"\d{11}", _poland),
    _number("BR", r"\d{11}|\d{3}\.\d{3}\.\d{3}-\d\d", _brazil),
    _number("TR", r"\d{11}", _turkey),
    _number("CN", r"\d{18}", _china),
    _number("KR", r"\d{6}-\d{7}", _korea),
    _number("SE", r"(?:\d\d)?\d{6}-\d{4}", _sweden),
    _number("SE", r"(?:\d\d)?\d{10}", _sweden, announced=True),
    _number("DK", r"\d{6}-\d{4}", _denmark),
    _number("NO", r"\d{6} ?\d{5}", _norway),
    _number("CZ", r"\d{6}/\d{3,4}", _czechia),
    _number("BE", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d|\d{11}", _belgium),
    _number("CH", r"756\.?\d{4}\.?\d{4}\.?\d\d", _switzerland),
    _number("IN", r"[2-9]\d{3} \d{4} \d{4}", verhoeff),
    _number("IN", r"[2-9]\d{11}", verhoeff, announced=True),
    _number("JP", r"\d{12}|\d{4} \d{4} \d{4}", _japan, announced=True),
    _number("RU", r"\d{12}", _russia, announced=True),
    _number("RU", r"\d{3}-\d{3}-\d{3} \d\d", _always),
    _number("DE", r"\d{11}|\d\d \d{3} \d{3} \d{3}", iso_7064_11_10, announced=True),
    _number("NL", r"\d{9}|\d{4}\.\d\d\.\d{3}", _netherlands, announced=True),
    _number("PT", r"\d{9}|\d{3} \d{3} \d{3}", _portugal, announced=True),
)
LETTERED = (
    _number("GB", r"[A-Z]{2} ?\d\d ?\d\d ?\d\d ?[A-DT]", _always),
    _number("ES", r"\d{8}-?[A-Z]|[XYZ]-?\d{7}-?[A-Z]", _spain),
    _number("IT", r"[A-Z]{6}[0-9L-NP-V]{2}[A-EHLMPRST][0-9L-NP-V]{2}[A-Z][0-9L-NP-V]{3}[A-Z]", _italy),
    _number("CN", r"\d{17}X", _china),
    _number("FI", r"\d{6}[-+A-FYXWVU]\d{3}[0-9A-Y]", _finland),
    _number("FR", r"[12] ?\d\d ?[0-9]\d ?2[AB] ?\d{3} ?\d{3} ?\d\d", _france),
    _number("MX", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d", lambda s: _mexico("xx" + s)),
)
SEPARATORS = str.maketrans("", "", " -./")


def is_national_id(number: str, announced: bool, whole: bool = True) -> bool:
    """Whether digits with separators are an identity number.

    `announced`: a word before them says so; `whole`: no other digits stand beside them, as they would in a table.
    """
    if len(set(number)) <= 3 or not (whole or announced or " " not in number):
        return False
    return any(
        (announced or not one.announced) and one.shape.fullmatch(number) and one.check(number.translate(SEPARATORS))
        for one in NUMERIC
    )


def find_lettered(text: str) -> int:
    """The length of the identity number of digits and letters that `text` begins with; 0 if there is none."""
    for one in LETTERED:
        match = one.shape.match(text)
        if match and not text[match.end() : match.end() + 1].isalnum():
            bare = match.group() if one.country == "FI" else match.group().translate(SEPARATORS)
            if one.check(bare):
                return match.end()
    return 0

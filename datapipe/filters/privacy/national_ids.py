"""Recognition of national identity numbers by shape, date and checksum; those with a weak checksum need an announcing word."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from stdnum import luhn
from stdnum.br import cpf
from stdnum.ch import ssn as ahv
from stdnum.cn import ric
from stdnum.cz import rc
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.in_ import aadhaar
from stdnum.iso7064 import mod_11_10
from stdnum.it import codicefiscale
from stdnum.jp import in_ as my_number
from stdnum.mx import curp
from stdnum.nl import bsn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.pt import nif
from stdnum.ru import inn
from stdnum.tr import tckimlik

# Own checks where python-stdnum rejects issued numbers, or depends on today's date, which would make the output depend on the
# day: US (9xx: ITIN), CN (places of birth missing in its table), KR (numbers since 2020 have no check digit), SE
# (coordination numbers; today), NO (FH numbers; today), DK and BE (today).


def _date(month: str, day: str) -> bool:
    return 1 <= int(month) <= 12 and 1 <= int(day) <= 31


def _united_states(s: str) -> bool:
    return s[:3] not in {"000", "666"} and s[3:5] != "00" and s[5:] != "0000"


def _china(s: str) -> bool:
    return s[6:8] in {"18", "19", "20"} and _date(s[10:12], s[12:14]) and bool(ric.calc_check_digit(s) == s[17])


def _sweden(s: str) -> bool:
    return 1 <= int(s[-8:-6]) <= 12 and 1 <= int(s[-6:-4]) % 60 <= 31 and bool(luhn.is_valid(s[-10:]))


def _norway(s: str) -> bool:
    valid = (fodselsnummer.calc_check_digit1(s), fodselsnummer.calc_check_digit2(s)) == (s[9], s[10])
    return valid and 1 <= int(s[:2]) % 40 <= 31 and 1 <= int(s[2:4]) % 40 <= 12


def _belgium(s: str) -> bool:
    return int(s[9:]) in {97 - int(s[:9]) % 97, 97 - int("2" + s[:9]) % 97} and int(s[2:4]) <= 12


def _always(_: str) -> bool:
    return True


@dataclass(frozen=True)
class NationalId:
    """Identity number of a country: its pattern, and the check of its characters. `announced`: only after an announcing word."""

    country: str
    shape: re.Pattern[str]
    check: Callable[[str], bool]
    announced: bool = False


def _number(country: str, shape: str, check: Callable[[str], bool], announced: bool = False) -> NationalId:
    return NationalId(country, re.compile(shape), check, announced)


NUMERIC = (
    _number("US", r"\d{3}-\d\d-\d{4}", _united_states),
    _number("US", r"\d{9}|\d{3} \d\d \d{4}", _united_states, announced=True),
    _number("FR", r"[12] ?\d\d ?[0-9]\d ?\d\d ?\d{3} ?\d{3} ?\d\d", nir.is_valid),
    _number("PL", r"\d{11}", pesel.is_valid),
    _number("BR", r"\d{11}|\d{3}\.\d{3}\.\d{3}-\d\d", cpf.is_valid),
    _number("TR", r"\d{11}", tckimlik.is_valid),
    _number("CN", r"\d{18}", _china),
    _number("KR", r"\d{6}-[1-8]\d{6}", _always),  # neither date nor checksum: the last six digits are random since 2020
    _number("SE", r"(?:\d\d)?\d{6}-\d{4}", _sweden),
    _number("SE", r"(?:\d\d)?\d{10}", _sweden, announced=True),
    _number("DK", r"\d{6}-\d{4}", lambda s: _date(s[2:4], s[:2])),
    _number("NO", r"\d{6} ?\d{5}", _norway),
    _number("CZ", r"\d{6}/\d{3,4}", rc.is_valid),
    _number("BE", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d|\d{11}", _belgium),
    _number("CH", r"756\.?\d{4}\.?\d{4}\.?\d\d", ahv.is_valid),
    _number("IN", r"[2-9]\d{3} \d{4} \d{4}", aadhaar.is_valid),
    _number("IN", r"[2-9]\d{11}", aadhaar.is_valid, announced=True),
    _number("JP", r"\d{12}|\d{4} \d{4} \d{4}", my_number.is_valid, announced=True),
    _number("RU", r"\d{12}", inn.is_valid, announced=True),
    _number("RU", r"\d{3}-\d{3}-\d{3} \d\d", _always),
    _number("DE", r"\d{11}|\d\d \d{3} \d{3} \d{3}", mod_11_10.is_valid, announced=True),
    _number("NL", r"\d{9}|\d{4}\.\d\d\.\d{3}", bsn.is_valid, announced=True),
    _number("PT", r"\d{9}|\d{3} \d{3} \d{3}", nif.is_valid, announced=True),
)
LETTERED = (
    _number("GB", r"[A-Z]{2} ?\d\d ?\d\d ?\d\d ?[A-DT]", _always),
    _number("ES", r"\d{8}-?[A-Z]", dni.is_valid),
    _number("ES", r"[XYZ]-?\d{7}-?[A-Z]", nie.is_valid),
    _number("IT", r"[A-Z]{6}[0-9L-NP-V]{2}[A-EHLMPRST][0-9L-NP-V]{2}[A-Z][0-9L-NP-V]{3}[A-Z]", codicefiscale.is_valid),
    _number("CN", r"\d{17}X", _china),
    _number("FI", r"\d{6}[-+A-FYXWVU]\d{3}[0-9A-Y]", partial(hetu.is_valid, allow_temporary=True)),
    _number("FR", r"[12] ?\d\d ?[0-9]\d ?2[AB] ?\d{3} ?\d{3} ?\d\d", nir.is_valid),
    _number("MX", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d", curp.is_valid),
)
SEPARATORS = str.maketrans("", "", " -./")


def is_national_id(number: str, announced: bool, whole: bool = True) -> bool:
    """Return True if digits with separators are an identity number. `announced`: by a word; `whole`: no digits next to them."""
    if len(set(number)) <= 3 or not (whole or announced or " " not in number):
        return False
    return any(
        (announced or not kind.announced) and kind.shape.fullmatch(number) and kind.check(number.translate(SEPARATORS))
        for kind in NUMERIC
    )


def find_lettered(text: str) -> int:
    """Return the length of the identity number of digits and letters at the start of `text`; 0 if there is none."""
    for kind in LETTERED:
        match = kind.shape.match(text)
        if match and not text[match.end() : match.end() + 1].isalnum():
            bare = match.group() if kind.country == "FI" else match.group().translate(SEPARATORS)
            if kind.check(bare):
                return match.end()
    return 0

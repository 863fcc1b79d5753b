"""Recognition of telephone numbers: with a country code, in a national notation, or announced by a word."""

import re
from functools import cache
from typing import Any

import phonenumbers

COUNTRIES = """
US GB DE FR ES IT NL PL BR SE JP CN KR IN TR RU CZ FI CA AU AT CH BE DK NO PT IE MX AR CL CO ZA NG EG IL SA AE UA RO HU GR TH
VN ID MY PH SG TW HK NZ
"""  # countries whose national notations are recognized
DATE = re.compile(
    r"(?:1[89]|20)\d\d([-./ ])\d\d?\1\d\d?(?!\d)|\d\d?([-./])\d\d?\2(?:1[89]|20)\d\d(?!\d)|(?:19|20)\d\d ?[-/] ?(?:19|20)\d\d$"
)
BOOK = re.compile(r"97[89][- ]?\d")
NORTH_AMERICA = re.compile(r"(?:1[-. ]?)?\(?[2-9]\d\d\)?(?:[-.]| ?- ?|(?<=\)) ?)\d{3}[-. ]\d{4}")
PARENTHESES = re.compile(r"\(0?\d{1,5}\)[ -]{0,2}\d[\d -]{3,11}\d")
TRUNK = re.compile(r"0[1-9]\d{0,4}(?:[-/ .]{1,3}\d{2,8}){1,5}")
ZIP_CODE = re.compile(r"\d{5}-\d{4}")
DASHES = re.compile(r"\d{2,4}-\d{3,4}-\d{4}|\d\d \d{4,5}-\d{4}|8[ -]\(?\d{3}\)?[ -]\d{3}[ -]\d\d[ -]?\d\d")
CHINESE_MOBILE = re.compile(r"1[3-9]\d{9}")
FEWEST, MOST = 7, 15  # digits


@cache
def _numbering() -> tuple[tuple[re.Pattern[str], re.Pattern[str]], ...]:
    """Return, for each country, the prefix of national calls and the pattern of national numbers."""
    patterns: list[tuple[re.Pattern[str], re.Pattern[str]]] = []
    for country in COUNTRIES.split():
        metadata: Any = phonenumbers.PhoneMetadata.metadata_for_region(country)
        prefix = metadata.national_prefix
        patterns.append(
            (re.compile(f"(?:{prefix})?" if prefix else ""), re.compile(metadata.general_desc.national_number_pattern))
        )
    return tuple(patterns)


def _valid_somewhere(digits: str) -> bool:
    for prefix, shape in _numbering():
        lead = prefix.match(digits)
        if shape.fullmatch(digits) or (lead and lead.end() and shape.fullmatch(digits[lead.end() :])):
            return True
    return False


def _international(digits: str, compact: bool) -> bool:
    """Return True if digits begin with a country code and have a possible length for that country."""
    code = next((digits[:n] for n in (1, 2, 3) if int(digits[:n] or 0) in phonenumbers.COUNTRY_CODE_TO_REGION_CODE), None)
    if code is None or not FEWEST <= len(digits) <= MOST:
        return False
    if not compact:
        return len(digits) - len(code) >= 6
    number = phonenumbers.PhoneNumber(country_code=int(code), national_number=int(digits[len(code) :] or 0))
    return bool(phonenumbers.is_possible_number(number))


def is_phone(text: str, announced: bool, whole: bool = True) -> bool:
    """Return True if digits with separators are a telephone number. `announced`: by a word; `whole`: no digits next to them."""
    if DATE.match(text) or (BOOK.match(text) and not announced) or ZIP_CODE.fullmatch(text):
        return False
    digits = "".join(filter(str.isdigit, text))
    if not FEWEST <= len(digits) <= MOST:
        return False
    if text.startswith(("+", "(+")):
        return _international(digits, compact=text[1:].isdigit() and not announced)
    if announced:
        return text.count(".") < 3 or len(digits) >= 9
    if whole and text.startswith("00") and _international(digits[2:], compact=True):
        return len(digits) >= 11
    if NORTH_AMERICA.fullmatch(text) or DASHES.fullmatch(text):
        return text[0] in "0(8" or bool(NORTH_AMERICA.fullmatch(text)) or _valid_somewhere(digits)
    if PARENTHESES.fullmatch(text):
        return 8 <= len(digits) <= 12
    if TRUNK.fullmatch(text):
        return whole and 9 <= len(digits) <= 11 and _valid_somewhere(digits)
    if text.isdigit():
        return bool(CHINESE_MOBILE.fullmatch(text)) or (text[0] == "0" and 10 <= len(text) <= 11 and _valid_somewhere(text))
    return False

"""Recognition of payment cards and IBANs, by shape and checksum."""

import re

from stdnum import luhn
from stdnum.iso7064 import mod_97_10

ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|3(?:0[0-59]|[689]\d)\d{11}"
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12}|(?:35\d\d|220[0-4])\d{12}|(?:2131|1800)\d{11}|(?:50|5[6-9]|6\d|0604)\d{8,17}"
)
CARD_GROUPS = re.compile(
    r"\d{12,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}|\d{4}([ -])\d{4}\3\d{4}\3\d{4}\3\d{3}"
)
COUNTRIES = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 FK18
FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21
LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24
SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""  # country codes and lengths of their IBANs
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in COUNTRIES.split()}


def is_card(text: str) -> bool:
    """Return True if digits, ungrouped or grouped as on a card, are an issuer's card number with a valid check digit."""
    if not CARD_GROUPS.fullmatch(text):
        return False
    digits = text.replace(" ", "").replace("-", "")
    return bool(ISSUERS.fullmatch(digits)) and len(set(digits)) > 1 and bool(luhn.is_valid(digits))


def find_iban(text: str) -> int:
    """Return the length of the IBAN at the start of `text`, ungrouped or grouped by blanks or dashes; 0 if there is none."""
    length = IBAN_LENGTHS.get(text[:2])
    if length is None:
        return 0
    letters: list[str] = []
    for at, letter in enumerate(text):
        if letter.isascii() and (letter.isdigit() or letter.isupper()):
            letters.append(letter)
            if len(letters) == length:
                follows = text[at + 1 : at + 2]
                ends = not (follows.isascii() and follows.isalnum())
                valid = "".join(letters[2:4]).isdigit() and mod_97_10.is_valid("".join(letters[4:] + letters[:4]))
                return at + 1 if ends and valid else 0
        elif letter not in " -" or text[at - 1] in " -":
            return 0
    return 0

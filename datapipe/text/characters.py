"""Unicode properties (white space, letter, symbol, sentence end) and lower case of each code point, as tables for kernels."""

import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CODE_POINTS = 0x110000
MARKS_END = 0x20000  # code points from here on are ideographs or unassigned: no marks, no capitals
SPACE, ALPHABETIC, ALPHANUMERIC, SYMBOL, TERMINAL, BREAK, DECIMAL, CLOSING = (1 << bit for bit in range(8))

# Unicode's property Sentence_Terminal (PropList.txt), which Python's unicodedata does not have
SENTENCE_TERMINAL = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D5 1803 1809"
    " 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 2024 203C-203D 2047-2049 2CF9-2CFB 2E2E"
    " 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12"
    " FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143"
    " 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 113D4-113D5 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642"
    " 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44"
    " 16D6E-16D6F 16E98 1BC9F 1DA88"
)
LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # the separators of str.splitlines


class CharacterTables(NamedTuple):
    """Property bits and lower case of each code point (for `İ`, whose lower case has two characters, the first)."""

    flags: NDArray[np.uint8]
    lower: NDArray[np.uint32]


@cache
def character_tables() -> CharacterTables:
    """Build the tables from this Python's Unicode data."""
    characters = np.arange(CODE_POINTS, dtype=np.uint32).view("<U1")
    flags = np.zeros(CODE_POINTS, dtype=np.uint8)
    for bit, mask in (
        (SPACE, np.strings.isspace(characters)),
        (ALPHABETIC, np.strings.isalpha(characters)),
        (ALPHANUMERIC, np.strings.isalnum(characters)),
        (DECIMAL, np.strings.isdecimal(characters)),
    ):
        flags[mask] |= bit
    category = categories()
    group = category.astype("<U1")
    flags[:MARKS_END][(group == "P") | (group == "S") | (category == "Cc")] |= SYMBOL
    flags[:MARKS_END][(category == "Pe") | (category == "Pf")] |= CLOSING
    for bit, members in ((CLOSING, "\"'"), (BREAK, LINE_BREAKS), (TERMINAL, terminal_characters())):
        flags[[ord(character) for character in members]] |= bit
    lower = np.arange(CODE_POINTS, dtype=np.uint32)
    lower[:MARKS_END] = np.strings.lower(characters[:MARKS_END]).view(np.uint32)
    for table in (flags, lower):
        table.flags.writeable = False
    return CharacterTables(flags, lower)


@cache
def categories() -> NDArray[np.str_]:
    """General category, such as `Lu`, of each code point below MARKS_END."""
    return np.array([unicodedata.category(chr(code)) for code in range(MARKS_END)])


def terminal_characters() -> str:
    """Return the characters that end a sentence, in any script."""
    spans = [[int(end, 16) for end in span.split("-")] for span in SENTENCE_TERMINAL.split()]
    return "".join(chr(code) for span in spans for code in range(span[0], span[-1] + 1))

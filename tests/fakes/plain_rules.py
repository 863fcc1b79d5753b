"""The published rules in plain Python, one document at a time: what the compiled ones must equal."""

import re
import unicodedata
from collections import Counter
from typing import Any

from ropewalk.datapipe.filters.registry import make_filter
from ropewalk.datapipe.filters.rules.published import C4, FineWeb, GopherQuality, GopherRepetition
from ropewalk.datapipe.text.characters import terminal_characters
from tests.fakes.plain_tokens import tokens

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
TERMINAL = frozenset(terminal_characters())


def above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


def below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def unspaced(character: str) -> bool:
    """Return True for a character or mark of a script without blanks between words."""
    names = (
        *("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "COMBINING KATAKANA", "VERTICAL KANA", "VERTICAL IDEO", "MASU"),
        "HENTAIGANA",
        *("BOPOMOFO", "HANGZHOU", "IDEOGRAPHIC ITERATION", "IDEOGRAPHIC CLOSING", "IDEOGRAPHIC NUMBER"),
        *("THAI", "LAO", "MYANMAR", "KHMER"),
    )
    name = unicodedata.name(character, "")
    marks = ("CJK STROKE", "CJK RADICAL", "KATAKANA MIDDLE DOT", "THAI CURRENCY", "KHMER SYMBOL", "KHMER DIGIT")
    return name.startswith(names) and not name.startswith(marks) and unicodedata.category(character)[0] in "LMN"


def words_of(text: str, kind: str = "white_space") -> list[str]:
    """Words between white space; in scripts without blanks every letter starts a word, and so does the letter after it."""
    if kind != "white_space":
        return tokens(text)
    arguments: list[str] = []
    for chunk in text.split():
        arguments.append("")
        alone = False
        for character in chunk:
            if character.isalnum() and (alone or (unspaced(character) and any(map(str.isalnum, arguments[-1])))):
                arguments.append("")
            if character.isalnum():
                alone = unspaced(character)
            arguments[-1] += character
    return arguments


def spaced(word: str) -> bool:
    """Return True for a word between blanks, False for one character of a script without blanks."""
    return not any(unspaced(character) and character.isalnum() for character in word)


def is_symbol(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "PS" or category == "Cc"


def gopher_quality(text: str, rule: GopherQuality) -> str | None:
    tokens = words_of(text, rule.words)
    real = [word for word in tokens if not all(map(is_symbol, word))]
    lines = [line.strip() for line in text.splitlines()]
    of_words = max(len(tokens), 1)
    between_blanks = [word for word in real if rule.words == "tokens" or spaced(word)]
    mean = sum(map(len, between_blanks)) / len(between_blanks) if between_blanks else None
    bullets = sum(line.startswith(("•", "-")) for line in lines)
    ellipses = sum(line.endswith(("...", "…")) for line in lines)
    checks = {
        "min_words": below(len(real), rule.min_words),
        "max_words": above(len(real), rule.max_words),
        "min_mean_word_length": mean is not None and below(mean, rule.min_mean_word_length),
        "max_mean_word_length": mean is not None and above(mean, rule.max_mean_word_length),
        "max_hash_ratio": above(text.count("#") / of_words, rule.max_hash_ratio),
        "max_ellipsis_ratio": above((text.count("...") + text.count("…")) / of_words, rule.max_ellipsis_ratio),
        "max_bullet_lines": above(bullets / max(len(lines), 1), rule.max_bullet_lines),
        "max_ellipsis_lines": above(ellipses / max(len(lines), 1), rule.max_ellipsis_lines),
        "min_alphabetic_words": below(sum(any(map(str.isalpha, w)) for w in tokens) / of_words, rule.min_alphabetic_words),
        "min_stop_words": below(len({*tokens} & {*rule.stop_words}), rule.min_stop_words),
    }
    return next((name for name, dropped in checks.items() if dropped), None)


def repeated(parts: list[Any]) -> list[Any]:
    """The parts that an earlier one equals."""
    observed: set[Any] = set()
    return [part for part in parts if part in observed or observed.add(part)]


def repeated_grams(arguments: list[str], size: int) -> int:
    observed: set[tuple[str, ...]] = set()
    at = characters = 0
    while at + size <= len(arguments):
        gram = tuple(arguments[at : at + size])
        if gram in observed:
            characters += sum(map(len, gram))
            at += size
        else:
            observed.add(gram)
            at += 1
    return characters


def top_gram(arguments: list[str], size: int) -> int:
    grams = Counter(" ".join(arguments[at : at + size]) for at in range(len(arguments) - size + 1))
    return max((len(gram) * count for gram, count in grams.most_common(1)), default=0)


def gopher_repetition(text: str, rule: GopherRepetition) -> str | None:
    paragraphs, lines, tokens = re.split(r"\n\n+", text.strip()), re.split(r"\n+", text), words_of(text, rule.words)
    for parts, name in ((paragraphs, "paragraph"), (lines, "line")):
        again = repeated(parts)
        if above(len(again) / len(parts), getattr(rule, f"duplicate_{name}_fraction")):
            return f"duplicate_{name}_fraction"
        if above(sum(map(len, again)) / len(text), getattr(rule, f"duplicate_{name}_character_fraction")):
            return f"duplicate_{name}_character_fraction"
    for size in range(2, 11):
        name = f"{'top' if size < 5 else 'duplicate'}_{size}_gram_character_fraction"
        characters = top_gram(tokens, size) if size < 5 else repeated_grams(tokens, size)
        if above(characters / len(text), getattr(rule, name)):
            return name
    return None


def fineweb(text: str, rule: FineWeb) -> str | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    checks = {
        "min_punctuated_lines": below(sum(line[-1] in TERMINAL for line in lines) / len(lines), rule.min_punctuated_lines),
        "max_short_lines": above(sum(len(line) <= rule.short_line_length for line in lines) / len(lines), rule.max_short_lines),
        "max_repeated_line_characters": above(
            sum(map(len, repeated(lines))) / len(text.replace("\n", "")), rule.max_repeated_line_characters
        ),
        "max_newlines_per_word": above(text.count("\n") / max(len(words_of(text, rule.words)), 1), rule.max_newlines_per_word),
    }
    return next((name for name, dropped in checks.items() if dropped), None)


def sentences(line: str) -> int:
    """A sentence ends with a mark, then closing quotes or brackets, then white space, the end, or at once in wide scripts."""
    closing = [c for c in set(line) if unicodedata.category(c) in {"Pe", "Pf"} or c in "\"'"]
    marks, ends = f"[{re.escape(''.join(TERMINAL))}]", "".join(map(re.escape, closing))
    inside = f"[{ends}]" if ends else "(?!)"
    cut = "".join(f"{c}\n" if c in TERMINAL and ord(c) >= 0x3000 else c for c in " ".join(line.split()))
    parts = [part for piece in cut.split("\n") for part in re.sub(rf"((?:{marks}){inside}*)(?=\s|$)", "\\1\n", piece).split("\n")]
    return sum(any(not (c.isspace() or c in TERMINAL or c in closing) for c in part) for part in parts)


def c4(text: str, rule: C4) -> tuple[str | None, str]:
    """The reason, and the text of the lines that stay."""
    remaining: list[str] = []
    count = 0
    for raw in text.splitlines():
        line, tokens = raw.strip(), words_of(raw)
        if rule.max_word_length is not None and any(len(word) > rule.max_word_length for word in tokens):
            continue
        if rule.citations:
            line = re.sub(r"\[(?:\d*|edit|citation needed)\]", "", line)
        if rule.end_marks is not None and (not line.endswith(tuple(rule.end_marks)) or line.endswith("...")):
            continue
        if below(len(tokens), rule.min_words_per_line):
            continue
        lower = line.lower()
        if rule.lorem_ipsum and "lorem ipsum" in lower:
            return "lorem_ipsum", ""
        if rule.javascript and "javascript" in lower:
            continue
        if rule.curly_bracket and "{" in line:
            return "curly_bracket", ""
        if rule.policy and any(policy in lower for policy in POLICIES):
            continue
        count += sentences(line)
        remaining.append(line)
    if below(count, rule.min_sentences):
        return "min_sentences", ""
    left = "\n".join(remaining).strip()
    return (None, left) if left else ("no_text", "")


PLAIN = {
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "fineweb": fineweb,
    "c4": lambda text, rule: c4(text, rule)[0],
}


def without(name: str) -> dict[str, Any]:
    """Options that switch every rule off."""
    fields = make_filter(name, {}).model_dump().items()
    shared_keys = {"stop_words", "short_line_length", "words"}
    return {key: False if value is True else None for key, value in fields if key not in shared_keys}

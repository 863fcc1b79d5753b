"""The published rules, compiled: they decide as the plain ones do, on real documents and on whatever characters there are."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ropewalk.datapipe.filters.registry import make_filter
from ropewalk.datapipe.text.document_batch import DocumentBatch
from tests.fakes.documents import make, rejected, rows, write_lines
from tests.fakes.plain_rules import PLAIN, c4, sentences, without, words_of
from tests.fakes.plain_tokens import tokens
from tests.fakes.real_text import real_texts

EVERY_RULE: dict[str, dict[str, Any]] = {
    "gopher_quality": {
        "min_words": 3,
        "max_words": 9,
        "min_mean_word_length": 2,
        "min_alphabetic_words": 0.5,
        "min_stop_words": 1,
    },
    "gopher_repetition": {"duplicate_paragraph_fraction": 0.4, "duplicate_line_fraction": 0.4},
    "fineweb": {"min_punctuated_lines": 0.2, "short_line_length": 6, "max_newlines_per_word": 0.8},
    "c4": {"min_sentences": 1, "min_words_per_line": 2, "max_word_length": 12, "end_marks": ".?!\"'。"},
}
# what cuts words, lines and sentences, what is written in several ways, what a rule looks for; and whole phrases of it
ADVERSARIAL = [
    *"\n\n\n\r\t\v\f\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000\u200b  ..?!\"'…•-#{}[]()»”)】。12aAéßİKﬁ\u0301麻绳🪢",
    *"กีที่ひﾊ々ー、「၁ក្",
    *"\x00\U0010ffff\ue000\uff01\uff1f\u0661\uff12\u0131",
    "the", "of ", "\n\n", "...", "[1]", "[edit]", "[citation needed]", "[]", "lorem ipsum", "JavaScript", "java\u017fcript",
    "coo\u212aies", "uses cookies", "Privacy Policy", "PRİVACY POLICY", "terms of use", "one two three. ", "\n- item", "\r\n",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(ADVERSARIAL) | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).map("".join)


def compare(name: str, options: dict[str, Any], texts: Sequence[str]) -> Counter[str]:
    """Assert that every text is judged and rewritten alike; how often each rule drops one."""
    rule, plain = make_filter(name, options), PLAIN[name]
    verdict = rule.judge(DocumentBatch.of_texts(texts))
    results = [verdict.reasons[code - 1] if code else None for code in verdict.codes.tolist()]
    expected = [plain(text, rule) for text in texts]
    assert [(t, f, e) for t, f, e in zip(texts, results, expected, strict=True) if f != e][:3] == []
    if verdict.texts is not None:
        pairs = zip(texts, verdict.texts.to_pylist(), strict=True)
        assert [(text, left) for text, left in pairs if c4(text, rule)[1] != left][:3] == []
    return Counter(reason for reason in results if reason)


def judged_alike(name: str, texts: list[str]) -> None:
    compare(name, EVERY_RULE[name], texts)
    compare(name, {}, texts)
    if name != "c4":
        compare(name, {**EVERY_RULE[name], "words": "tokens"}, texts)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
@example(texts=["\n", "a", "\n\na\n\n", "a\n \n", " a\n\n a", "a b c a b c"])
@example(
    texts=[
        "[1] One two three.",
        "One two three.[1]",
        "One [",
        "[\u0661] one two. x",
        "one two three. [edit",
        "a\u0085b.\u2028c d e.",
    ]
)
def test_any_characters_are_judged_as_in_plain_python(name: str, texts: list[str]) -> None:
    judged_alike(name, texts)


@pytest.mark.soak("a thousand examples; make test runs thirty")
@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=1000, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_many_more_characters_are_judged_as_in_plain_python(name: str, texts: list[str]) -> None:
    judged_alike(name, texts)


CHUNKS = st.text(st.sampled_from(list("aBc1.,'-/:@_+*#%$()n't\u2019\u2026\u2014\u00e9s~=<w")), max_size=14)


@settings(max_examples=400, deadline=None)
@given(st.lists(CHUNKS | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=12))
@example(
    [
        "https://a.b/c?d=e.",
        "(see",
        "www.x.org),",
        "me@here.org",
        "don't",
        "e.g.",
        "U.S.",
        "well-known",
        "a--b",
        "3.14",
        "x.Y",
        "...",
    ]
)
@example(
    ["We'll", "they\u2019re", "1+1", "10%", "A/B", "C.", "I.B.M.", "'tis", "a,b", "$5", "5$", "dogs'", "it's", "x...y", "++i"]
)
def test_tokens_are_those_of_plain_python(chunks: list[str]) -> None:
    text = " ".join(chunks)
    batch, expected = DocumentBatch.of_texts([text]), tokens(text)
    assert batch.tokens.chars.tolist() == [len(token) for token in expected]
    alone = DocumentBatch.of_texts(expected).words
    single = [row for row, token in enumerate(expected) if len(words_of(token)) == 1]
    assert batch.tokens.exact[single].tolist() == [int(alone.exact[alone.first[row]]) for row in single]


@pytest.mark.parametrize("name", PLAIN)
def test_real_documents_are_judged_as_in_plain_python(name: str) -> None:
    texts = list(islice(real_texts(), 150))
    assert sum(compare(name, {}, texts).values()) > 5
    if name != "c4":
        compare(name, {"words": "tokens"}, texts[:40])


@pytest.mark.soak("every document; make test runs a sample")
@pytest.mark.parametrize("name", PLAIN)
def test_every_real_document_is_judged_as_in_plain_python(name: str) -> None:
    reasons: Counter[str] = Counter()
    texts = real_texts()
    while batch := list(islice(texts, 500)):
        reasons += compare(name, {}, batch)
        if name != "c4":
            compare(name, {"words": "tokens"}, batch)
    assert len(reasons) > 2


@pytest.mark.parametrize("name", PLAIN)
def test_each_rule_can_be_switched_off(name: str) -> None:
    texts = list(islice(real_texts(), 50))
    assert not compare(name, without(name), texts)
    verdict = make_filter(name, {}).judge(DocumentBatch.of_texts(texts))
    for code, reason in enumerate(verdict.reasons, 1):
        dropped = [text for text, number in zip(texts, verdict.codes, strict=True) if number == code]
        if dropped and reason in make_filter(name, {}).model_dump():
            value = False if name == "c4" and reason != "min_sentences" else None
            assert reason not in compare(name, {reason: value}, dropped)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("One. Two! Three?", 3),
        ('He said "Go." Then (it went.) so', 3),
        ("Version 3.14 of e.g. this", 2),
        ("一。二\uff01三", 3),
        ("Wait... what?!", 2),
        ("...", 0),
        ("", 0),
    ],
)
def test_what_a_sentence_is(line: str, count: int) -> None:
    assert sentences(line) == count
    text = f"{line}\n"
    verdict = make_filter("c4", {**without("c4"), "min_sentences": count}).judge(DocumentBatch.of_texts([text]))
    more = make_filter("c4", {**without("c4"), "min_sentences": count + 1}).judge(DocumentBatch.of_texts([text]))
    assert [verdict.codes[0] == 3, more.codes[0] == 3] == [False, True]


def test_rules_for_a_language_without_blanks() -> None:
    """With stop words of its own Chinese prose passes Gopher's rules, as a character counts as a word; a short text does not."""
    prose = "".join(chr(0x4E00 + (n * n * 7) % 5000) + ("、" if n % 9 == 0 else "") for n in range(120)) + "的了。"
    rule = make_filter("gopher_quality", {"stop_words": ["的", "了"]})
    verdict = rule.judge(DocumentBatch.of_texts([prose, "太短的了。"]))
    assert [verdict.reasons[code - 1] if code else None for code in verdict.codes.tolist()] == ["min_stop_words", "min_words"]
    remaining = make_filter("gopher_quality", {"stop_words": ["的", "了。"]}).judge(DocumentBatch.of_texts([prose]))
    assert remaining.codes.tolist() == [0]


PROSE = "The rope of the lane is laid by hand, and that takes a while to do well. "


def test_a_data_set_with_all_rules(tmp_path: Path) -> None:
    """Each dropped document has its rule; the texts that stay are C4's, and what C4 took out is counted."""
    good = "\n".join(f"{PROSE}It was number {n} of {n * 7} that have been seen with care." for n in range(9))
    documents = {
        "good": f"Menu\n{good}\nPlease enable JavaScript to go on reading this.",
        "short": "The rope of the lane.",
        "again": "\n\n".join([PROSE * 3] * 4),
        "code": good.replace("care.", "care { of.", 1),
        "list": "\n".join(f"the item {n} of that list" for n in range(60)),
    }
    source = write_lines(tmp_path / "in.jsonl", [{"id": name, "text": text} for name, text in documents.items()])
    keys: dict[str, Any] = {"filters": ["gopher_quality", "gopher_repetition", "c4", "fineweb"], "validation_fraction": 0}
    repetitive = {f"top_{n}_gram_character_fraction": None for n in (2, 3, 4)} | {
        f"duplicate_{n}_gram_character_fraction": None for n in range(5, 11)
    }
    keys["filters"][1] = {"gopher_repetition": repetitive}
    manifest = make(source, tmp_path / "out", **keys)
    assert {line["id"]: line["reason"] for line in rejected(tmp_path / "out")} == {
        "short": "gopher_quality.min_words",
        "again": "gopher_repetition.duplicate_paragraph_fraction",
        "code": "c4.curly_bracket",
        "list": "c4.min_sentences",
    }
    assert [row["id"] for row in rows(tmp_path / "out")] == ["good"]
    assert manifest.totals.bytes == len(good)
    assert manifest.counts["c4.javascript"] == 1
    assert manifest.counts["c4.end_marks"] == 61

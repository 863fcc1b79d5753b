"""The language of a text: py3langid's own decisions, and `und` for what is none."""


# ruff: noqa: RUF001

import random
import string
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from pydantic import ValidationError

from ropewalk.datapipe.filters.language.filter import CODES, Language
from ropewalk.datapipe.filters.language.kernels import HISTORY, PIECE, walk
from ropewalk.datapipe.filters.language.model import READ_BYTES, _model, identify, known_languages
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.datapipe.text.document_batch import DocumentBatch

ENGLISH = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and should act"
    " towards one another in a spirit of brotherhood. Everyone is entitled to all the rights and freedoms set forth here."
)
TEXTS = {
    "en": ENGLISH,
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und sollen"
    " einander im Geist der Brüderlichkeit begegnen. Jeder hat Anspruch auf die in dieser Erklärung verkündeten Rechte.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience et"
    " doivent agir les uns envers les autres dans un esprit de fraternité. Chacun peut se prévaloir de tous les droits.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。"
    "人人有资格享受本宣言所载的一切权利和自由。",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны"
    " поступать в отношении друг друга в духе братства. Каждый человек должен обладать всеми правами и всеми свободами.",
}
CODE = (
    'def scale(values: list[float], by: float) -> list[float]:\n    return [value * by for value in values]\n\nTABLE = {"a": 1}\n'
    * 4
)


@pytest.fixture(scope="module")
def oracle() -> Any:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@pytest.mark.parametrize("drawn", [12, pytest.param(60, marks=pytest.mark.soak("ten seconds of the oracle; make test draws 12"))])
def test_decisions_are_those_of_py3langid(oracle: Any, drawn: int) -> None:
    draw = random.Random(0)
    vocabulary = " ".join(TEXTS.values()).split()
    texts = [*TEXTS.values(), CODE, "", " ", "A", ENGLISH.upper(), "e\u0301te\u0301 " * 40, "\x00\x01", "🪢" * 50]
    texts += [" ".join(draw.choices(vocabulary, k=draw.randint(1, 200))) for _ in range(drawn)]
    languages = identify(TextBatch.of(texts))
    for index, text in enumerate(texts):
        label, confidence = oracle.classify(text)
        assert languages.of(index) == label, text
        assert languages.confidence[index] == pytest.approx(confidence, abs=1e-3)


@pytest.mark.soak("eight seconds of CPU time about a constant; test_decisions_are_those_of_py3langid has the decisions")
def test_a_state_depends_on_the_last_bytes_alone() -> None:
    """The number of bytes is the depth of the deepest state."""
    moves, rows, _ = _model()[0][0]
    reached, front, depth = np.zeros(len(rows), np.bool_), np.array([0]), 0
    while len(front) and depth <= HISTORY:
        reached[front] = True
        front = np.setdiff1d(moves.reshape(-1, 256)[rows[front]], np.flatnonzero(reached))
        depth += 1
    assert reached.all()
    assert depth - 1 <= HISTORY


def test_quarters_side_by_side_visit_what_one_walk_visits() -> None:
    """At each length, and of bytes that stop in the middle of a feature."""
    moves, rows, features = automaton = _model()[0][0]
    data = np.frombuffer(" ".join(TEXTS.values()).encode() * 2, np.uint8)
    state, plain = np.uint32(0), []
    for byte in data:
        state = moves[(np.int64(rows[state]) << 8) + byte]
        plain.append(features[state])
    visited = np.empty(len(data) + 1, np.int32)
    for length in [*range(200), len(data) - 1, len(data)]:
        many = walk(data[:length], automaton, visited)
        assert Counter(visited[:many].tolist()) == Counter(int(item) for item in plain[:length] if item >= 0), length


def test_a_long_text_is_told_by_a_piece_of_each_quarter(oracle: Any) -> None:
    """Up to 16 KiB as py3langid does it with all of the text; beyond that by the beginnings of the quarters, and nothing else."""
    most = (TEXTS["de"] * 100).encode()[:READ_BYTES].decode()
    label, confidence = oracle.classify(most)
    assert (identify(TextBatch.of([most])).of(0), label) == ("de", "de")
    assert identify(TextBatch.of([most])).confidence[0] == pytest.approx(confidence, abs=1e-3)
    draw = random.Random(2)
    size, margin = 40_000, 2 * HISTORY  # the walk counts quarters of what lies before the last 8 bytes
    quarters = [bytearray((TEXTS["en"] * 200).encode()[:size]) for _ in range(4)]
    before = identify(TextBatch.of([b"".join(quarters).decode()]))
    for quarter in quarters:
        quarter[PIECE:-margin] = draw.choices(string.ascii_lowercase.encode(), k=size - PIECE - margin)
    after = identify(TextBatch.of([b"".join(quarters).decode()]))
    assert after.of(0) == before.of(0) == "en"
    assert after.confidence[0] == before.confidence[0]


@pytest.mark.soak("eight seconds of CPU time; test_decisions_are_those_of_py3langid compares texts of all kinds")
@given(texts=st.lists(st.text(max_size=300), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_text_gets_the_decision_of_py3langid(oracle: Any, texts: list[str]) -> None:
    languages = identify(TextBatch.of(texts := [text.encode("utf-8", "ignore").decode() for text in texts]))
    for index, text in enumerate(texts):
        ranked = oracle.rank(text)
        near = [label for label, p in ranked if p > ranked[0][1] - 1e-6]  # which of two equals is first is left to rounding
        assert languages.of(index) in near


def test_languages_that_are_not_kept_are_the_reason_and_what_is_none_is_und() -> None:
    draw = random.Random(1)
    noise = ["".join(draw.choices(string.printable, k=400)) for _ in range(20)]
    noise += [bytes(draw.choices(range(256), k=400)).decode("utf-8", "replace") for _ in range(20)]
    verdict = Language(keep=("en", "fr")).judge(DocumentBatch.of_texts([*TEXTS.values(), CODE, *noise]))
    reasons = [verdict.reasons[code - 1] if code else None for code in verdict.codes]
    assert reasons == [None, "de", None, "zh", "ru", "und", *["und"] * 40]
    assert verdict.counts == {"en": 1, "fr": 1}


def test_code_may_count_as_the_language_of_its_comments() -> None:
    batch = DocumentBatch.of_texts([CODE.replace("    return", f"    # {ENGLISH}\n    return")])
    assert Language(keep=("en",)).judge(batch).codes.tolist() == [1]
    assert Language(keep=("en",), code=False).judge(batch).codes.tolist() == [0]


def test_codes_that_are_accepted_are_those_of_the_model() -> None:
    assert set(CODES.split()) == set(known_languages())
    assert Language(keep=("en", "und")).keep == ("en", "und")
    with pytest.raises(ValidationError, match="'english' is not the code of a language that can be identified"):
        Language(keep=("english",))


def test_nothing_named_keeps_every_language() -> None:
    verdict = Language().judge(DocumentBatch.of_texts([*TEXTS.values(), "0"]))
    assert verdict.codes.tolist() == [0, 0, 0, 0, 0, 1]

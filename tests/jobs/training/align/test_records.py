"""Pairs made of records, reasons of rejected records, and their loss masks."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk.jobs.training.align.preferences.encode import Encoder, Tokens
from ropewalk.jobs.training.align.preferences.records import Preference, Refused, labelled_of, pair_of
from tests.jobs.corpus import END
from tests.jobs.training.align.pairs import make_model

USER, GOOD, BAD = ({"role": role, "content": word} for role, word in (("user", "u"), ("assistant", "g"), ("assistant", "b")))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def encoder(tokenizer: Path, **keys: Any) -> Encoder:
    return Encoder(tokenizer, **{"seq_len": 64, "cut": False, "verbatim": None, "system": None, **keys})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "missing_prompt"),
        ({"prompt": "p", "rejected": "b"}, "missing_chosen"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "missing_chosen"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "equal_answers"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "equal_answers"),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, "empty_answer"),
        ({"prompt": [], "chosen": [GOOD], "rejected": [BAD]}, "roles_do_not_alternate"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "roles_do_not_alternate"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "no_assistant_turn"),
        ({"prompt": [{"role": "pope", "content": "x"}], "chosen": "a", "rejected": "b"}, "unknown_role"),
        ({"prompt": [USER], "chosen": [{"role": "assistant", "content": 3}], "rejected": "b"}, "content_not_text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "no_messages"),
    ],
    ids=str,
)
def test_no_pair_and_why(record: dict[str, Any], reason: str) -> None:
    assert pair_of(record) == Refused(reason)


def test_labelled_answers_and_pairs_taken_apart() -> None:
    assert list(labelled_of({"prompt": "p", "completion": "c", "label": True})) == [Preference("p", ("c",), True)]
    assert list(labelled_of({"prompt": "p", "completion": "c", "label": 0})) == [Preference("p", ("c",), False)]
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert list(labelled_of(pair)) == [Preference("p", ("a",), True), Preference("p", ("b",), False)]
    for label, reason in ((None, "missing_label"), ("yes", "label_not_boolean")):
        assert list(labelled_of({"prompt": "p", "completion": "c", "label": label})) == [Refused(reason)]
    assert list(labelled_of({"prompt": "p", "label": True})) == [Refused("missing_completion")]


def test_text_is_a_conversation_only_with_a_template(tokenizer: Path, tmp_path: Path) -> None:
    text, turns = Preference("u", ("g", "b")), Preference([USER], ([GOOD], [BAD]))
    expected = Tokens([*b"<user>u", END, *b"\n<assistant>"], ([*b"g", END], [*b"b", END]))
    assert encoder(tokenizer).encode(text) == encoder(tokenizer).encode(turns) == expected
    assert encoder(tokenizer, verbatim=True).encode(text) == Tokens([*b"u"], ([*b"g", END], [*b"b", END]))
    with_system = encoder(tokenizer, system="s").encode(turns)
    assert isinstance(with_system, Tokens)
    assert with_system.prompt == [*b"<system>s", END, 10, *expected.prompt]
    bare = make_model(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    assert encoder(bare).encode(text) == Tokens([*b"u"], ([*b"g", END], [*b"b", END]))
    assert isinstance(encoder(bare).encode(turns), Tokens), "by a plain template"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no') }}", "template_failed"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}{{ messages|length }}", "template_not_prefix"),
        ("{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}", "empty_mask"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "equal_answers"),
    ],
)
def test_a_template_that_will_not_do(template: str, reason: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    assert encoder(folder).encode(Preference([USER], ([GOOD], [BAD]))) == Refused(reason)


def test_what_is_longer_than_the_context_is_left_out_or_cut_at_its_end(tokenizer: Path) -> None:
    long = Preference("pp", ("a" * 10, "b"))
    assert encoder(tokenizer, verbatim=True, seq_len=8).encode(long) == Refused("too_long")
    cut = encoder(tokenizer, verbatim=True, seq_len=8, cut=True).encode(long)
    assert cut == Tokens([*b"pp"], ([*b"aaaaaa"], [*b"b", END]), None, True)
    assert encoder(tokenizer, verbatim=True, seq_len=2, cut=True).encode(long) == Refused("no_room_for_an_answer")
    same = Preference("pp", ("aaaaaaaaaaaX", "aaaaaaaaaaaY"))
    assert encoder(tokenizer, verbatim=True, seq_len=8, cut=True).encode(same) == Refused("equal_answers_when_cut")

"""No personal data is left in what is kept: wherever it stands in a value, however it is spelled, wherever a stream cuts it."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.jobs.serving.feedback.config import KINDS
from ropewalk.jobs.serving.feedback.exchange import Frame, exchange_frame, take_frames
from ropewalk.jobs.serving.feedback.masking import LEFT_OUT, MAX_DEPTH, mask
from ropewalk.jobs.serving.feedback.records import exchange_rows
from tests.jobs.serving.feedback.exchanges import exchange, items, personal_exchange, planted

MAIL, CARD = "jane.doe@mail.example.org", "4111 1111 1111 1111"


def masked(value: object) -> object:
    return mask([value], KINDS)[0][0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"to {MAIL}", "to <EMAIL>"),
        ({"a": [MAIL, {"b": CARD}], MAIL: 1}, {"a": ["<EMAIL>", {"b": "<CARD>"}], "<EMAIL>": 1}),
        ({"card": 4111111111111111, "n": 12345678, "year": 2026}, {"card": "<CARD>", "n": 12345678, "year": 2026}),
        ({"phoneNumber": 5272868387, "phone_number": "5272868387"}, {"phoneNumber": "<PHONE>", "phone_number": "<PHONE>"}),
        ({MAIL: 1, "john@mail.example.org": 2}, {"<EMAIL>": 1, "<EMAIL>1": 2}),
        (json.dumps({"to": MAIL}), '{"to":"<EMAIL>"}'),
        ('{"to": "jane\\u0040mail.example.org"}', '{"to":"<EMAIL>"}'),
        ('{"to": "jane\\u0040mail.example.org", "cut', '{"to": "<EMAIL>", "cut'),
        (json.dumps({"in": json.dumps({"to": MAIL})}), '{"in":"{\\"to\\":\\"<EMAIL>\\"}"}'),
        ("a\ud800b", "a?b"),
        (None, None),
        (True, True),
        (0.5, 0.5),
    ],
)
def test_personal_data_are_replaced_wherever_they_stand(value: object, expected: object) -> None:
    assert masked(value) == expected


def test_a_number_that_words_announce_goes_though_its_check_digit_is_wrong() -> None:
    assert masked("Her social security number is 989-00-8717.") == "Her social security number is <NATIONAL_ID>."
    assert masked("My number is 1234567890123, is it prime?") == "My number is 1234567890123, is it prime?"


def test_what_is_nested_beyond_measure_is_left_out() -> None:
    value: object = MAIL
    for _ in range(900):
        value = [value]
    text = json.dumps(masked(value))
    assert LEFT_OUT in text
    assert text.count("[") == MAX_DEPTH + 1
    assert "example" not in text


def test_only_the_kinds_that_are_asked_for() -> None:
    assert mask([[MAIL, CARD]], ["card"]) == ([[MAIL, "<CARD>"]], [1])
    assert mask([[MAIL, CARD]], []) == ([[MAIL, CARD]], [0])


def test_none_of_what_was_planted_is_left_in_a_row() -> None:
    """Questions, arguments of tools (JSON inside JSON) and answers cut into events of five characters."""
    frames: list[Frame] = []
    for number in range(len(planted())):
        frames += take_frames(bytearray(b"".join(exchange_frame(personal_exchange(number), captured=True))))
    _, rows = exchange_rows(frames, KINDS)
    written = "\n".join(orjson.dumps(row).decode() for row in rows)
    assert len(rows) == len(planted())
    assert [item for item in items(planted()) if item in written] == []
    assert written.count("<EMAIL>") > 100
    assert '"user"' not in "".join(row["sampling"] for row in rows)


def test_what_spells_the_words_in_another_way_is_not_kept() -> None:
    messages = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    request = {
        **{"model": "m", "messages": [{"role": "user", "content": messages}], "continue_from": {"token_ids": [101, 102]}},
        **{"logit_bias": {"50256": -100}, "stop_token_ids": [101, 102], "user": MAIL, "top_p": 0.9},
    }
    logprobs = {"content": [{"token": "secret", "logprob": -1.0}]}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "A cat", "token_ids": [1]},
        "logprobs": logprobs,
        "token_ids": [1],
    }
    raw = exchange(1, request=json.dumps(request).encode(), answer=json.dumps({"id": "x", "choices": [choice]}).encode())
    completion = exchange(2, request=b'{"model": "m", "prompt": [101, 102, 103]}')
    frames = [
        f for exchange in (raw, completion) for f in take_frames(bytearray(b"".join(exchange_frame(exchange, captured=True))))
    ]
    _, (chat, plain) = exchange_rows(frames, KINDS)
    assert json.loads(chat["messages"])[0]["content"] == [messages[0], {"type": "image_url", "left_out": True}]
    assert json.loads(chat["choices"]) == [{"message": {"role": "assistant", "content": "A cat"}}]
    assert json.loads(chat["sampling"]) == {"top_p": 0.9}
    assert json.loads(plain["messages"]) == {"left_out_token_ids": True}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_any_value_is_masked_once_and_for_all(value: object) -> None:
    once = masked(value)
    assert masked(once) == once
    json.dumps(once)

"""Parsing of exchanges from any bytes that a client or an engine may have sent."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.jobs.serving.feedback.exchange import Frame, exchange_frame, take_frames
from ropewalk.jobs.serving.feedback.parse import answer_of, request_of
from ropewalk.jobs.serving.feedback.records import exchange_rows
from tests.jobs.serving.feedback.exchanges import chunk, exchange, sse, streamed


def test_a_stream_says_what_the_whole_answer_does() -> None:
    text = "Größe 🪢 — done"
    result = answer_of(streamed("chatcmpl-1", text, size=1))
    assert result["choices"] == [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    assert (result["id"], result["usage"]["completion_tokens"]) == ("chatcmpl-1", len(text))
    whole = {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
    }
    assert answer_of(json.dumps(whole).encode())["choices"] == result["choices"]


def test_tool_calls_and_several_choices_are_put_together() -> None:
    first = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "mail", "arguments": '{"to": '}}
    more = {"index": 0, "function": {"arguments": '"x"}'}}
    other = {"id": "c", "choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}
    body = sse(chunk("c", {"role": "assistant", "tool_calls": [first]}), chunk("c", {"tool_calls": [more]}, "tool_calls"), other)
    left, two = answer_of(body)["choices"]
    call = {"id": "call-1", "type": "function", "function": {"name": "mail", "arguments": '{"to": "x"}'}}
    assert left == {"message": {"role": "assistant", "content": "a", "tool_calls": [call]}, "finish_reason": "tool_calls"}
    assert two == {"message": {"role": "assistant", "content": "b"}}


def test_a_stream_that_was_cut_says_what_had_come() -> None:
    body = streamed("chatcmpl-1", "one two three", size=4)
    cut = body[: body.index(b"two") + 2]
    assert answer_of(cut)["choices"] == [{"message": {"role": "assistant", "content": "one "}}]
    assert answer_of(b"")["choices"] == []


@pytest.mark.parametrize(
    "body", [b"", b"nope", b"[]", b"3", b'{"messages": 4, "prompt": {}}', b"\xff\xfe", b'{"messages": [null, 3, "x"]}']
)
def test_bad_requests_are_kept_as_what_they_are(body: bytes) -> None:
    raw = exchange(1, request=body, status=400, outcome="refused", answer=b'{"error": {"message": "no", "code": "bad"}}')
    ledger, rows = exchange_rows(list(take_frames(bytearray(b"".join(exchange_frame(raw, captured=True))))), ())
    assert [row["outcome"] for row in (*ledger, *rows)] == ["refused", "refused"]
    assert rows[0]["answer"] is None


def test_frames_arrive_in_any_pieces() -> None:
    sent = b"".join(piece for n in range(5) for piece in exchange_frame(exchange(n, f"say {n}"), captured=n != 3))
    for size in (1, 7, 1000, len(sent)):
        received, result = bytearray(), list[Frame]()
        for at in range(0, len(sent), size):
            received += sent[at : at + size]
            result += take_frames(received)
        assert [f.fields["id"] for f in result] == [f"req-{n:06d}" for n in range(5)]
        assert [bool(f.request) for f in result] == [True, True, True, False, True]
        assert not received


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "tool_calls",
                    "function",
                    "index",
                    "text",
                    "prompt",
                    "usage",
                    "id",
                    "role",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(ANY, ANY, st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_json_is_read_without_an_error(request: object, answer: object, stream: bool) -> None:
    body = sse(answer, answer) if stream else json.dumps(answer).encode()
    fields = {"id": "r", "time": 1.0, "captured": True}
    ledger, rows = exchange_rows([Frame(b"E", fields, json.dumps(request).encode(), body)], ())
    assert (len(ledger), len(rows)) == (1, 1)
    assert set(request_of(json.dumps(request).encode())) <= {"messages", "prompt", "tools", "sampling"}

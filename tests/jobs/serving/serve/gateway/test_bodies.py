"""Bodies of requests, and fields read from an engine's events."""

import json

import pytest

from ropewalk.jobs.serving.serve.gateway.errors import RefusalError
from ropewalk.jobs.serving.serve.gateway.exchange.continuation import (
    Method,
    can_continue_by_ids,
    continue_from_body,
    initial_body,
)
from ropewalk.jobs.serving.serve.gateway.exchange.events import read_sent
from ropewalk.jobs.serving.serve.gateway.exchange.readers import DivergedError, PassThrough, ReplayReader
from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, ModelRequest, read_request


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', "invalid_json"),
        (b"[1]", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"messages": [{"role": "user", "content": %b}]}' % (b"[" * 300 + b"]" * 300), "invalid_json"),
        (b'{"messages": []}', "missing_required_parameter"),
        (b'{"messages": "hello"}', "invalid_type"),
        (b'{"messages": ["hello"]}', "invalid_type"),
        (b'{"messages": [{}], "model": 5}', "invalid_type"),
        (b'{"messages": [{}], "timeout": -5}', "invalid_timeout"),
        (b'{"messages": [{}], "timeout": "soon"}', "invalid_timeout"),
    ],
)
def test_bodies_without_sense_are_refused(body: bytes, code: str) -> None:
    with pytest.raises(RefusalError) as error:
        read_request(CHAT, {}, body)
    assert (error.value.status, error.value.code) == (400, code)


def _chat(**keys: object) -> ModelRequest:
    return read_request(CHAT, {}, json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True, **keys}).encode())


def test_token_ids_are_taken_out_and_nothing_else() -> None:
    content = json.dumps(r'quoted ,"token_ids":[9] \ é')
    bare = f'data: {{"id":"a","choices":[{{"delta":{{"content":{content}}},"index":0}}]}}\n\n'.encode()
    with_ids = bare.replace(b'"index":0}]}', b'"index":0,"token_ids":[1, -1]}],"prompt_token_ids":[7,8]}')
    reader = PassThrough(keep_ids=False)
    assert reader.feed(with_ids[:30]) == b""
    assert reader.feed(with_ids[30:] + b"data: half") == bare
    assert (reader.token_ids, reader.prompt_ids, reader.has_token_ids, reader.ended) == ([1, -1], [7, 8], True, False)
    assert reader.feed(b"\n\ndata: [DONE]\n\n") == b"data: half\n\ndata: [DONE]\n\n"
    assert (reader.token_ids, reader.has_token_ids, reader.ended) == ([], False, True)
    assert PassThrough(keep_ids=True).feed(with_ids) == with_ids


def test_a_body_keeps_its_bytes() -> None:
    request = ModelRequest(
        CHAT, b'{"messages" : [{"a":1.50}],"stream":true }\n', {"messages": [{"a": 1.5}], "stream": True}, None, True, None
    )
    assert initial_body(request, Method.REPLAY, None, 5) == request.body
    assert (
        initial_body(request, Method.CONTINUE_FROM, None, 5)
        == b'{"messages" : [{"a":1.50}],"stream":true ,"return_token_ids":true,"seed":5}'
    )
    assert json.loads(initial_body(request, Method.BY_IDS, "name", 5))["model"] == "name"
    greedy = _chat(temperature=0, seed=None)
    assert "seed" not in initial_body(greedy, Method.CONTINUE_FROM, None, 5).decode().replace('"seed": null', "")


def test_what_was_sent_is_told_to_the_next_engine() -> None:
    request = _chat(temperature=0, max_tokens=9)
    stream = b'data: {"id":"c1","created":3,"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    body = json.loads(continue_from_body(request, read_sent(request, stream + b"data: {", [1], [5]), None, 7))
    assert body["continue_from"] == {"id": "c1", "created": 3, "token_ids": [5], "started": True}
    assert "seed" not in body
    assert can_continue_by_ids(request, read_sent(request, stream, [1], [5]))
    for keys in ({"tools": [{}]}, {"presence_penalty": 1}, {"response_format": {"type": "json_object"}}, {"n": 2}):
        other = _chat(temperature=0, max_tokens=9, **keys)
        assert not can_continue_by_ids(other, read_sent(other, stream, [1], [5]))


def test_a_replay_leaves_out_what_is_known_and_sees_another_answer() -> None:
    request = _chat()
    events = [b'data: {"id":"%%s","choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n' % k for k in range(4)]
    existing = read_sent(request, b"".join(event.replace(b"%s", b"c1") for event in events[:2]), [], None)
    out = ReplayReader(existing).feed(b"".join(event.replace(b"%s", b"c2") for event in events) + b"data: [DONE]\n\n")
    assert out == b"".join(event.replace(b"%s", b"c1") for event in events[2:]) + b"data: [DONE]\n\n"
    with pytest.raises(DivergedError):
        ReplayReader(existing).feed(events[1])
    with pytest.raises(DivergedError):
        ReplayReader(existing).feed(events[0] + b"data: [DONE]\n\n")

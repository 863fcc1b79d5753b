"""The API as OpenAI's own client uses it, and what is wrong with a request."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from ropewalk.jobs.inference.engines.process import EngineProcess
from tests.jobs.inference.engines.conftest import TOKEN
from tests.jobs.inference.engines.streams import CHAT, COMPLETIONS, ask

if TYPE_CHECKING:
    import openai  # takes seconds to import, and every worker collects every module

HELLO = [{"role": "user", "content": "hello"}]
LETTERS = {str(token): -100 for token in range(128, 256)}  # a model of random weights writes what is no UTF-8
OPENED = {"model": "tiny", "messages": HELLO, "max_tokens": 8}


class Rope(BaseModel):
    strong: bool


@pytest.fixture
def client(engine: EngineProcess) -> Iterator["openai.OpenAI"]:
    import openai

    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


def test_models_completions_and_chats(client: "openai.OpenAI") -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "ropewalk"
    plain = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=4, n=2, logprobs=1, seed=1)
    assert [choice.index for choice in plain.choices] == [0, 1, 2, 3]
    assert plain.usage is not None
    assert plain.usage.prompt_tokens == 2
    assert 4 <= plain.usage.completion_tokens <= 16
    chat = client.chat.completions.create(
        model="tiny", messages=HELLO, max_completion_tokens=4, logprobs=True, top_logprobs=2, logit_bias=LETTERS
    )
    assert chat.id.startswith("chatcmpl-")
    assert chat.choices[0].finish_reason in {"length", "stop"}
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content
    parsed = client.chat.completions.parse(model="tiny", messages=HELLO, max_tokens=40, response_format=Rope)
    assert isinstance(parsed.choices[0].message.parsed, Rope)


def test_an_answer_may_hold_what_only_unicode_calls_the_end_of_a_line(client: "openai.OpenAI") -> None:
    next_line = {str(byte): 100 for byte in "\x85".encode()}
    answer = client.completions.create(model="tiny", prompt="a", max_tokens=60, n=4, seed=1, logit_bias=next_line)
    assert "\x85" in "".join(choice.text for choice in answer.choices)


def test_a_stream_with_usage(client: "openai.OpenAI") -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, temperature=0)
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    shown = whole.choices[0].message.content or ""
    stopped = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=6, temperature=0, stop=shown[1:3])
    assert stopped.choices[0].message.content == shown[:1]
    assert stopped.choices[0].finish_reason == "stop"


def test_errors_are_those_that_the_client_knows(client: "openai.OpenAI", engine: EngineProcess) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="the model 'other' does not exist"):
        client.chat.completions.create(model="other", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "rope " * 60}])
    assert refused.value.code == "context_length_exceeded"
    assert "256" in str(refused.value)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="a")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff\xfe"}]}', "not JSON in UTF-8"),
        (CHAT, b'{"model": "tiny", "messages": [', "not JSON"),
        (CHAT, b"[]", "not a JSON object"),
        (CHAT, {"messages": HELLO}, "you must provide the parameter 'model'"),
        (CHAT, {"model": "tiny", "messages": []}, "'messages'"),
        (CHAT, {**OPENED, "temperature": "hot"}, "'temperature'"),
        (CHAT, {**OPENED, "max_tokens": 0}, "'max_tokens'"),
        (CHAT, {**OPENED, "max_tokens": 1000}, "at most"),
        (CHAT, {**OPENED, "colour": 1}, "unrecognized request argument supplied: colour"),
        (CHAT, {**OPENED, "presence_penalty": 1.0}, "presence_penalty"),
        (CHAT, {**OPENED, "tool_choice": "required"}, "tool_choice"),
        (CHAT, {**OPENED, "logit_bias": {"999": 1}}, "not below"),
        (CHAT, {**OPENED, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "text only"),
        (CHAT, {**OPENED, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "JSON schema"),
        (CHAT, {**OPENED, "n": 2, "continue_from": {"id": "a", "created": 1}}, "continued"),
        (COMPLETIONS, {"model": "tiny", "prompt": []}, "empty list"),
        (COMPLETIONS, {"model": "tiny", "prompt": [999999]}, "not below"),
        (COMPLETIONS, {"model": "tiny", "prompt": {"a": 1}}, "'prompt"),
    ],
)
def test_what_is_wrong_is_said(engines: dict[str, EngineProcess], path: str, body: object, message: str) -> None:
    for engine in engines.values():
        answer = ask(engine, path, body)  # type: ignore[arg-type]
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert message in error["message"]
        assert set(error) == {"message", "type", "param", "code"}

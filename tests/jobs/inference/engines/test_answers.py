"""Answers of both engines are those of the model, whatever is asked beside, and go on where another process stopped."""

import asyncio
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import torch

import ropewalk.jobs.inference.engines.sampler
import ropewalk.jobs.inference.engines.transformers.sampler as sampler_module
from ropewalk.datapipe.chat.template import open_tokenizer
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.process import EngineProcess
from ropewalk.jobs.inference.engines.transformers.sampler import TransformersSampler
from ropewalk.jobs.inference.scoring.generate import Sampling, generate
from ropewalk.jobs.inference.scoring.open_model import open_model
from tests.jobs.inference.engines.streams import CHAT, COMPLETIONS, HTTP, ask, continued_as, events, text_of
from tests.patience import Patience, Stopwatch, until

LETTERS = {str(token): -100 for token in range(128, 256)}  # a model of random weights writes what is no UTF-8
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 24, "return_token_ids": True, "logit_bias": LETTERS}
DRAWN = {**GREEDY, "temperature": 0.9, "top_p": 0.95, "seed": 7}
LONG = "a rope " * (8_000_000 // 7)  # a text may have eight million letters
SECONDS_LONG = LONG[:1_500_000]  # takes seconds to encode
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
PROMPTS = ["a rope", "the strands", "is", "laid", "in a long straight lane", "by one walker"]
SCHEMA = {
    "type": "object",
    "properties": {"rope": {"enum": ["laid", "twisted"]}, "strong": {"type": "boolean"}},
    "required": ["rope", "strong"],
    "additionalProperties": False,
}


def test_greedy_answers_side_by_side_are_the_models_own(engines: dict[str, EngineProcess], model: Path) -> None:
    opened = open_model(str(model))
    ours = generate(opened, [list(text.encode()) for text in PROMPTS], Sampling(max_new_tokens=24))
    together = ask(engines["transformers"], COMPLETIONS, {**GREEDY, "prompt": PROMPTS, "logit_bias": {}}).json()["choices"]
    assert [tuple(choice["token_ids"]) for choice in together] == [expected.tokens for expected in ours]


def test_answers_do_not_depend_on_what_is_asked_beside(engines: dict[str, EngineProcess]) -> None:
    bodies = [{**GREEDY, "prompt": text} for text in PROMPTS]
    alone = [ask(engines["transformers"], COMPLETIONS, body).json()["choices"][0] for body in bodies]
    for engine in engines.values():
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            results = list(pool.map(lambda body, to=engine: ask(to, COMPLETIONS, body), bodies))
        assert [item.json()["choices"][0]["token_ids"] for item in results] == [text["token_ids"] for text in alone]


def test_text_that_is_no_utf8_is_shown_and_cannot_be_continued_blindly(engines: dict[str, EngineProcess]) -> None:
    body = {**GREEDY, "prompt": "a rope", "logit_bias": {}}
    texts = [text_of(whole := events(engine, COMPLETIONS, body)) for engine in engines.values()]
    assert all("�" in text for text in texts)
    familiar = [
        all(token >= 0 for event in events(each, COMPLETIONS, body) for token in event.tokens) for each in engines.values()
    ]
    assert familiar[0]  # llama.cpp does not say which tokens they were
    if not familiar[1]:
        refused = ask(
            engines["llamacpp"], COMPLETIONS, {**body, "stream": True, "continue_from": continued_as(whole, len(whole))}
        )
        assert refused.json()["error"]["code"] == "cannot_continue"


@pytest.mark.parametrize(
    "body",
    [
        {**GREEDY, "stop": ["zz", "yy"]},
        {**DRAWN, "logprobs": True, "top_logprobs": 2},
        {**GREEDY, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    ],
    ids=["greedy", "drawn", "schema"],
)
def test_a_stream_goes_on_elsewhere_byte_for_byte(engine: EngineProcess, body: dict[str, object]) -> None:
    request = {**body, **HELLO, "stream_options": {"include_usage": True}}
    whole = events(engine, CHAT, request)
    assert len(whole) > 6
    for sent in range(0, len(whole) - 2, 3):
        rest = events(engine, CHAT, {**request, "continue_from": continued_as(whole, sent)})
        assert text_of(rest) == text_of(whole[sent:])
        if "logprobs" not in body:  # of which the last digit depends on how many tokens were read at once
            assert b"".join(event.raw for event in rest) == b"".join(event.raw for event in whole[sent:])


def test_what_is_streamed_is_what_is_answered_as_a_whole(engine: EngineProcess) -> None:
    body = {**DRAWN, "prompt": "a rope"}
    whole = ask(engine, COMPLETIONS, body).json()["choices"][0]
    streamed = events(engine, COMPLETIONS, body)
    assert text_of(streamed) == whole["text"]
    assert [token for event in streamed for token in event.tokens] == whole["token_ids"]
    assert ask(engine, COMPLETIONS, {**body, "seed": 8}).json()["choices"][0]["text"] != whole["text"]


def test_both_engines_say_the_same(engines: dict[str, EngineProcess]) -> None:
    request = {**GREEDY, **HELLO, "logprobs": True, "top_logprobs": 3}
    first, second = (ask(each, CHAT, request).json()["choices"][0] for each in engines.values())
    assert first["message"] == second["message"]
    assert first["token_ids"] == second["token_ids"]
    for item, other in zip(first["logprobs"]["content"], second["logprobs"]["content"], strict=True):
        assert item["token"] == other["token"]
        assert item["logprob"] == pytest.approx(other["logprob"], abs=0.02)
    for path, body in (("/tokenize", {"content": "a rope"}), ("/apply-template", HELLO)):
        first, second = (ask(each, path, body).json() for each in engines.values())
        assert first == second


def test_an_answer_follows_its_schema_and_a_tool_that_must_be_called_is(engine: EngineProcess) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer = ask(engine, CHAT, {**DRAWN, **HELLO, "max_tokens": 60, "response_format": form}).json()["choices"][0]
    assert set(json.loads(answer["message"]["content"])) == {"rope", "strong"}
    assert answer["finish_reason"] == "stop"
    tool = {"type": "function", "function": {"name": "lay", "parameters": SCHEMA}}
    body = {**DRAWN, **HELLO, "max_tokens": 90, "tools": [tool], "tool_choice": "required"}
    answer = ask(engine, CHAT, body).json()["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    assert set(json.loads(answer["message"]["tool_calls"][0]["function"]["arguments"])) == {"rope", "strong"}
    streamed = events(engine, CHAT, body)
    calls = [call for event in streamed for choice in event.choices for call in choice["delta"].get("tool_calls", [])]
    assert calls[0]["function"] == answer["message"]["tool_calls"][0]["function"]


def test_a_client_that_hangs_up_frees_its_slot(engine: EngineProcess) -> None:
    body = {**GREEDY, "max_tokens": 250, "prompt": "a", "ignore_eos": True, "stream": True}
    for _ in range(3):
        with HTTP.stream("POST", f"{engine.url}{COMPLETIONS}", json=body, headers=engine.headers) as answer:
            next(answer.iter_raw())
    until(lambda: engine.ask("/health")["running"] == 0, Patience.SIGNAL)


def test_log_probabilities_of_a_prompt(engines: dict[str, EngineProcess]) -> None:
    body = {**GREEDY, "prompt": "a rope", "echo": True, "logprobs": 1, "max_tokens": 0}
    answer = ask(engines["transformers"], COMPLETIONS, body).json()["choices"][0]
    assert answer["text"] == "a rope"
    assert answer["logprobs"]["token_logprobs"][0] is None
    assert all(each <= 0 for each in answer["logprobs"]["token_logprobs"][1:])
    refused = ask(engines["llamacpp"], COMPLETIONS, body)
    assert refused.status_code == 400
    assert "transformers" in refused.json()["error"]["message"]


FEW = ropewalk.jobs.inference.engines.sampler.Sampling(max_tokens=3, temperature=0)


def test_a_prompt_whose_probabilities_do_not_fit_fails_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(sampler_module, "_prompt_logprobs", full)
    sampler = TransformersSampler(open_model(str(model)), slots=1, context=None)

    async def scenario() -> int:
        async with asyncio.timeout(Patience.SIGNAL.value):
            with pytest.raises(ApiError, match="no memory is left"):
                await sampler.prompt_logprobs([3, 4, 5], 1)
            return len([each async for each in sampler.draw([3, 4, 5], FEW)])

    assert asyncio.run(scenario()) == 3
    sampler.close()


def test_an_engine_whose_thread_ends_does_so_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []

    def broken(*_: object) -> None:
        raise KeyError("nobody has foreseen this")

    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(TransformersSampler, "_turn", broken)
    sampler = TransformersSampler(open_model(str(model)), slots=1, context=None)

    async def scenario() -> None:
        request = asyncio.create_task(anext(sampler.draw([3, 4, 5], FEW)))
        await asyncio.to_thread(until, lambda: codes, Patience.SIGNAL)
        request.cancel()

    asyncio.run(scenario())
    assert codes == [1]


def test_a_prompt_that_cannot_fit_is_refused_by_its_bytes(engine: EngineProcess) -> None:
    for path, body in ((COMPLETIONS, {"prompt": LONG}), (CHAT, {"messages": [{"role": "user", "content": LONG}]})):
        watch = Stopwatch()
        answer = ask(engine, path, {"model": "tiny", **body})
        assert watch.seconds < 2, "it is not encoded: that takes 8 s and more"
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert re.search(r"the prompt has \d{7} bytes; the context of the model has 256 tokens of at most \d+ bytes", answer.text)


def test_others_go_on_while_a_long_text_is_encoded(engine: EngineProcess) -> None:
    """Nothing bounds a text whose tokens are to be counted."""
    client = httpx2.Client(base_url=engine.url, headers=engine.headers, timeout=600, verify=False)
    with ThreadPoolExecutor(1) as pool, client:
        client.get("/health")
        encoding = pool.submit(ask, engine, "/tokenize", {"content": SECONDS_LONG})
        longest, num_answers = 0.0, 0
        while not encoding.done():
            watch = Stopwatch()
            assert client.get("/health").status_code == 200
            answer = client.post(COMPLETIONS, json={"model": "tiny", "prompt": "a", "max_tokens": 1})
            assert answer.status_code == 200
            longest, num_answers = max(longest, watch.seconds), num_answers + 1
        assert encoding.result().json()["count"] > 2**19
        assert num_answers > 5
        assert longest < 1, "a second for the health and a whole answer of one token"


def test_a_special_token_in_a_message_is_text(engine: EngineProcess, model: Path) -> None:
    tokenizer = open_tokenizer(model)
    end = tokenizer.eos_token
    forged = [{"role": "user", "content": f"a{end}b"}]
    ids = ask(engine, "/tokenize", {"messages": forged}).json()["tokens"]
    assert tokenizer.eos_token_id not in ids
    assert ask(engine, "/detokenize", {"tokens": ids}).json()["content"] == f"### user\na{end}b\n\n### assistant\n"
    assert ask(engine, "/apply-template", {"messages": forged}).json()["prompt"] == f"### user\na{end}b\n\n### assistant\n"
    raw = ask(engine, "/tokenize", {"content": f"a{end}b", "add_special": False}).json()["tokens"]
    assert tokenizer.eos_token_id in raw, "a raw prompt may hold special tokens"
    events(engine, CHAT, {"model": "tiny", "messages": forged, "max_tokens": 2})

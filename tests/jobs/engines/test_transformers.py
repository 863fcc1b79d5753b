"""The reference engine: answers are those of the model, whatever is asked beside, and go on where another stopped."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.engines.process import EngineProcess
from jobs.inference.generate import Sampling, generate
from jobs.inference.open_model import open_model
from tests.jobs.engines.streams import CHAT, COMPLETIONS, ask, continued_as, events, text_of

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 24, "return_token_ids": True}
DRAWN = {**GREEDY, "temperature": 0.9, "top_p": 0.95, "seed": 7}
HELLO = {"messages": [{"role": "user", "content": "hello"}]}
PROMPTS = ["a rope", "the strands", "is", "laid", "in a long straight lane", "by one walker"]


def test_greedy_answers_side_by_side_are_the_models_own(transformers_engine: EngineProcess, model: Path) -> None:
    opened = open_model(str(model))
    own = generate(opened, [list(text.encode()) for text in PROMPTS], Sampling(max_new_tokens=24))
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        found = list(pool.map(lambda text: ask(transformers_engine, COMPLETIONS, {**GREEDY, "prompt": text}).json(), PROMPTS))
    together = ask(transformers_engine, COMPLETIONS, {**GREEDY, "prompt": PROMPTS}).json()["choices"]
    for place, expected in enumerate(own):
        assert tuple(found[place]["choices"][0]["token_ids"]) == expected.tokens
        assert tuple(together[place]["token_ids"]) == expected.tokens


def test_a_stream_goes_on_elsewhere_byte_for_byte(transformers_engine: EngineProcess) -> None:
    bodies = [{**GREEDY, **HELLO, "stop": ["zz", "\x1e"]}, {**DRAWN, **HELLO, "logprobs": True, "top_logprobs": 2}]
    for body in bodies:
        asked = {**body, "stream_options": {"include_usage": True}}
        whole = events(transformers_engine, CHAT, asked)
        for sent in range(len(whole) - 2):
            rest = events(transformers_engine, CHAT, {**asked, "continue_from": continued_as(whole, sent)})
            assert b"".join(event.raw for event in rest) == b"".join(event.raw for event in whole[sent:])


def test_what_is_streamed_is_what_is_answered_as_a_whole(transformers_engine: EngineProcess) -> None:
    body = {**DRAWN, "prompt": "a rope"}
    whole = ask(transformers_engine, COMPLETIONS, body).json()["choices"][0]
    streamed = events(transformers_engine, COMPLETIONS, body)
    assert text_of(streamed) == whole["text"]
    assert [token for event in streamed for token in event.tokens] == whole["token_ids"]
    assert ask(transformers_engine, COMPLETIONS, {**body, "seed": 8}).json()["choices"][0]["text"] != whole["text"]


def test_too_long_says_how_long_and_what_the_limit_is(transformers_engine: EngineProcess) -> None:
    answer = ask(transformers_engine, COMPLETIONS, {**GREEDY, "prompt": "rope " * 60})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "300" in error["message"]
    assert "256" in error["message"]

"""Answers as OpenAI's JSON: whole, and as events of a stream."""

from collections.abc import Sequence
from typing import Any

import orjson

from ropewalk.jobs.inference.engines.api.generation_request import GenerationRequest
from ropewalk.jobs.inference.engines.api.parts import Part
from ropewalk.jobs.inference.engines.api.text import Vocabulary
from ropewalk.jobs.inference.engines.sampler import UNKNOWN, Drawn

DONE = b"data: [DONE]\n\n"
DIGITS = 6  # decimal places of a log-probability


def event(body: Any) -> bytes:
    """Return an event of a stream."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


class Chunks:
    """Builds the events of a stream, or the body of a whole answer."""

    def __init__(self, request: GenerationRequest, vocabulary: Vocabulary) -> None:
        self._request, self._vocabulary = request, vocabulary
        self._offsets = [len(text) for text in request.echo] or [0] * len(request.choices)
        for choice in request.choices:
            self._offsets[choice.index] += sum(len(vocabulary.piece(token)[0]) for token in choice.drawn)
        kind = ("chat.completion.chunk" if request.chat else "text_completion") if request.stream else None
        kind = kind or ("chat.completion" if request.chat else "text_completion")
        self._head = {"id": request.id, "object": kind, "created": request.created, "model": request.model}

    def first(self, index: int, echoed: Sequence[Drawn] | None = None) -> bytes:
        """Return the event before the first part: the role of a chat, or an echoed prompt; empty for a plain completion."""
        request = self._request
        if request.chat:
            body = self._body(index, {"delta": {"role": "assistant", "content": ""}}, [], None)
            return event(self._with_prompt(body, index))
        if request.echo:
            self._offsets[index] = 0
            return event(self._with_prompt(self._body(index, {"text": request.echo[index]}, echoed or [], None), index))
        return b""

    def part(self, part: Part) -> bytes:
        if self._request.chat:
            content: dict[str, Any] = {"delta": {"content": part.text} if part.ended is None else {}}
        else:
            content = {"text": part.text}
        return event(self._body(part.index, content, part.tokens, part.ended))

    def call(self, index: int, text: str) -> bytes:
        """Return the event of a function call."""
        calls = [{"index": 0, **_call(text, self._request.id, index)}]
        return event(self._body(index, {"delta": {"tool_calls": calls}}, [], None))

    def end_of_call(self, part: Part) -> bytes:
        """Return the event that ends a function call."""
        return event(self._body(part.index, {"delta": {}}, [], _finish_reason_of_call(part)))

    def usage(self, num_tokens: int) -> bytes:
        """Return the event with token counts."""
        return event({**self._head, "choices": [], "usage": self._usage(num_tokens)})

    def whole(self, answers: Sequence[Sequence[Part]], echoed: Sequence[Sequence[Drawn]]) -> bytes:
        """Return the body of a whole answer from the parts of each choice."""
        choices = []
        for index, parts in enumerate(answers):
            text = "".join(part.text for part in parts)
            tokens = [drawn for part in parts for drawn in part.tokens]
            if self._request.chat and self._request.calls_tool:
                calls = [_call(text, self._request.id, index)]
                message = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": calls}
                choices.append(self._choice(index, {"message": message}, tokens, _finish_reason_of_call(parts[-1])))
            elif self._request.chat:
                message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
                choices.append(self._choice(index, {"message": message}, tokens, parts[-1].ended))
            else:
                if self._request.echo:
                    text, tokens = self._request.echo[index] + text, [*echoed[index], *tokens] if echoed else tokens
                    self._offsets[index] = 0
                choices.append(self._choice(index, {"text": text}, tokens, parts[-1].ended))
        body = {**self._head, "choices": choices, "usage": self._usage(sum(parts[-1].num_tokens for parts in answers))}
        if self._request.token_ids and self._request.chat:
            body["prompt_token_ids"] = self._request.choices[0].prompt
        return orjson.dumps(body)

    def _body(self, index: int, content: dict[str, Any], tokens: Sequence[Drawn], ended: str | None) -> dict[str, Any]:
        body = {**self._head, "choices": [self._choice(index, content, tokens, ended)]}
        return body | ({"usage": None} if self._request.include_usage else {})

    def _choice(self, index: int, content: dict[str, Any], tokens: Sequence[Drawn], ended: str | None) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": self._logprobs(index, tokens), "finish_reason": ended}
        if self._request.token_ids:
            choice["token_ids"] = [drawn.token for drawn in tokens if (drawn.token, drawn.ended) != (UNKNOWN, "stop")]
        return choice

    def _with_prompt(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        return body | ({"prompt_token_ids": self._request.choices[index].prompt} if self._request.token_ids else {})

    def _usage(self, num_tokens: int) -> dict[str, Any]:
        prompt = self._request.num_prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": num_tokens, "total_tokens": prompt + num_tokens}

    def _logprobs(self, index: int, tokens: Sequence[Drawn]) -> dict[str, Any] | None:
        if self._request.logprobs is None:
            return None
        if self._request.chat:  # tokens without a reported log-probability have no entry
            with_logprob = [drawn for drawn in tokens if drawn.logprob is not None]
            is_whole = not self._request.stream
            return (
                {"content": [self._entry(drawn) for drawn in with_logprob], "refusal": None} if with_logprob or is_whole else None
            )
        tokens = [drawn for drawn in tokens if drawn.token != UNKNOWN]
        if not tokens:
            return None
        texts, offsets = [self._vocabulary.piece(drawn.token)[0] for drawn in tokens], list[int]()
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_round(drawn.logprob) for drawn in tokens],
            "top_logprobs": [
                {self._vocabulary.piece(top.token)[0]: _round(top.logprob) for top in drawn.top} or None for drawn in tokens
            ],
            "text_offset": offsets,
        }

    def _entry(self, drawn: Drawn) -> dict[str, Any]:
        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            text, its_bytes = self._vocabulary.piece(token)
            return {"token": text, "logprob": _round(logprob), "bytes": its_bytes}

        return {**entry(drawn.token, drawn.logprob), "top_logprobs": [entry(top.token, top.logprob) for top in drawn.top]}


def _round(logprob: float | None) -> float | None:
    return None if logprob is None else round(max(logprob, -9999.0), DIGITS)


def _call(text: str, answer: str, index: int) -> dict[str, Any]:
    """Return the function call in a text of the forced schema; of a truncated text the raw text as arguments."""
    try:
        call = orjson.loads(text)
        name, arguments = call["name"], orjson.dumps(call["arguments"]).decode()
    except (orjson.JSONDecodeError, KeyError, TypeError):
        name, arguments = "", text
    return {"id": f"call_{answer[-24:]}{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _finish_reason_of_call(part: Part) -> str | None:
    return "tool_calls" if part.ended == "stop" else part.ended

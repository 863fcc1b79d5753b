"""Answers as OpenAI's JSON: whole ones, and the events of a stream."""

from collections.abc import Sequence
from typing import Any

import orjson

from ropewalk.jobs.inference.engines.api.asked import Asked
from ropewalk.jobs.inference.engines.api.parts import Part
from ropewalk.jobs.inference.engines.api.text import Vocabulary
from ropewalk.jobs.inference.engines.sampler import UNKNOWN, Drawn

DONE = b"data: [DONE]\n\n"
DIGITS = 6  # of a log-probability


def event(body: Any) -> bytes:
    """An event of a stream."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


class Chunks:
    """The events of one stream, and the bodies of answers that are given as a whole."""

    def __init__(self, asked: Asked, vocabulary: Vocabulary) -> None:
        self._asked, self._vocabulary = asked, vocabulary
        self._offsets = [len(text) for text in asked.echo] or [0] * len(asked.choices)
        for choice in asked.choices:
            self._offsets[choice.index] += sum(len(vocabulary.piece(token)[0]) for token in choice.drawn)
        kind = ("chat.completion.chunk" if asked.chat else "text_completion") if asked.stream else None
        kind = kind or ("chat.completion" if asked.chat else "text_completion")
        self._head = {"id": asked.id, "object": kind, "created": asked.created, "model": asked.model}

    def first(self, index: int, echoed: Sequence[Drawn] | None = None) -> bytes:
        """The event before the first part of an answer: its role, or the prompt that is echoed; none for a plain completion."""
        asked = self._asked
        if asked.chat:
            body = self._body(index, {"delta": {"role": "assistant", "content": ""}}, [], None)
            return event(self._with_prompt(body, index))
        if asked.echo:
            self._offsets[index] = 0
            return event(self._with_prompt(self._body(index, {"text": asked.echo[index]}, echoed or [], None), index))
        return b""

    def part(self, part: Part) -> bytes:
        """The event of a part."""
        if self._asked.chat:
            shown: dict[str, Any] = {"delta": {"content": part.text} if part.ended is None else {}}
        else:
            shown = {"text": part.text}
        return event(self._body(part.index, shown, part.tokens, part.ended))

    def call(self, index: int, text: str) -> bytes:
        """The event of a function's call."""
        calls = [{"index": 0, **_call(text, self._asked.id, index)}]
        return event(self._body(index, {"delta": {"tool_calls": calls}}, [], None))

    def end_of_call(self, part: Part) -> bytes:
        """The event of the end of a function's call."""
        return event(self._body(part.index, {"delta": {}}, [], _call_ended(part)))

    def usage(self, num_tokens: int) -> bytes:
        """The event that says what was used."""
        return event({**self._head, "choices": [], "usage": self._usage(num_tokens)})

    def whole(self, answers: Sequence[Sequence[Part]], echoed: Sequence[Sequence[Drawn]]) -> bytes:
        """The body of an answer that is given as a whole: the parts of each choice."""
        choices = []
        for index, parts in enumerate(answers):
            text = "".join(part.text for part in parts)
            tokens = [drawn for part in parts for drawn in part.tokens]
            if self._asked.chat and self._asked.calls_tool:
                calls = [_call(text, self._asked.id, index)]
                message = {"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": calls}
                choices.append(self._choice(index, {"message": message}, tokens, _call_ended(parts[-1])))
            elif self._asked.chat:
                message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
                choices.append(self._choice(index, {"message": message}, tokens, parts[-1].ended))
            else:
                if self._asked.echo:
                    text, tokens = self._asked.echo[index] + text, [*echoed[index], *tokens] if echoed else tokens
                    self._offsets[index] = 0
                choices.append(self._choice(index, {"text": text}, tokens, parts[-1].ended))
        body = {**self._head, "choices": choices, "usage": self._usage(sum(parts[-1].num_tokens for parts in answers))}
        if self._asked.token_ids and self._asked.chat:
            body["prompt_token_ids"] = self._asked.choices[0].prompt
        return orjson.dumps(body)

    def _body(self, index: int, shown: dict[str, Any], tokens: Sequence[Drawn], ended: str | None) -> dict[str, Any]:
        body = {**self._head, "choices": [self._choice(index, shown, tokens, ended)]}
        return body | ({"usage": None} if self._asked.include_usage else {})

    def _choice(self, index: int, shown: dict[str, Any], tokens: Sequence[Drawn], ended: str | None) -> dict[str, Any]:
        found = {"index": index, **shown, "logprobs": self._logprobs(index, tokens), "finish_reason": ended}
        if self._asked.token_ids:
            found["token_ids"] = [drawn.token for drawn in tokens if (drawn.token, drawn.ended) != (UNKNOWN, "stop")]
        return found

    def _with_prompt(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        return body | ({"prompt_token_ids": self._asked.choices[index].prompt} if self._asked.token_ids else {})

    def _usage(self, num_tokens: int) -> dict[str, Any]:
        prompt = self._asked.num_prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": num_tokens, "total_tokens": prompt + num_tokens}

    def _logprobs(self, index: int, tokens: Sequence[Drawn]) -> dict[str, Any] | None:
        if self._asked.logprobs is None:
            return None
        if self._asked.chat:  # of a token whose log-probability the engine does not say there is no entry
            told = [drawn for drawn in tokens if drawn.logprob is not None]
            whole = not self._asked.stream
            return {"content": [self._entry(drawn) for drawn in told], "refusal": None} if told or whole else None
        tokens = [drawn for drawn in tokens if drawn.token != UNKNOWN]
        if not tokens:
            return None
        texts, offsets = [self._vocabulary.piece(drawn.token)[0] for drawn in tokens], list[int]()
        for text in texts:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_rounded(drawn.logprob) for drawn in tokens],
            "top_logprobs": [
                {self._vocabulary.piece(top.token)[0]: _rounded(top.logprob) for top in drawn.top} or None for drawn in tokens
            ],
            "text_offset": offsets,
        }

    def _entry(self, drawn: Drawn) -> dict[str, Any]:
        def one(token: int, logprob: float | None) -> dict[str, Any]:
            text, its_bytes = self._vocabulary.piece(token)
            return {"token": text, "logprob": _rounded(logprob), "bytes": its_bytes}

        return {**one(drawn.token, drawn.logprob), "top_logprobs": [one(top.token, top.logprob) for top in drawn.top]}


def _rounded(logprob: float | None) -> float | None:
    return None if logprob is None else round(max(logprob, -9999.0), DIGITS)


def _call(text: str, answer: str, index: int) -> dict[str, Any]:
    """The call that a text of the forced schema stands for; of one that was cut off, what there is."""
    try:
        found = orjson.loads(text)
        name, arguments = found["name"], orjson.dumps(found["arguments"]).decode()
    except (orjson.JSONDecodeError, KeyError, TypeError):
        name, arguments = "", text
    return {"id": f"call_{answer[-24:]}{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_ended(part: Part) -> str | None:
    return "tool_calls" if part.ended == "stop" else part.ended

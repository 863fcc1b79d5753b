"""Parsing of raw exchanges: messages, sampling options, and answers assembled from streams. Nothing is masked here."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

_USER_KEYS = frozenset({"user", "safety_identifier", "prompt_cache_key"})
_CONTENT_KEYS = frozenset({"model", "messages", "prompt", "tools", "functions", "stream"})
_OPTIONS = frozenset(
    {"stop", "response_format", "tool_choice", "chat_template_kwargs"}
)  # sampling options whose values may be objects or arrays
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


def read_json(body: bytes) -> Any:
    """Parse a JSON body; return None if it is not JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:  # orjson also rejects lone surrogates and large integers, which `json` accepts
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None


def request_of(body: bytes) -> dict[str, Any]:
    """Return `messages`, `prompt`, `tools` and `sampling` of a request; empty if the body is not a JSON object.

    `store` is False if the client asked, as the OpenAI API allows, that the exchange not be stored. Token ids, images and audio
    are left out: personal data in them cannot be detected.
    """
    body_json = read_json(body)
    if not isinstance(body_json, dict):
        return {}
    request: dict[str, Any] = {"sampling": {k: v for k, v in body_json.items() if _is_option(k, v)}}
    if isinstance(body_json.get("messages"), list):
        request["messages"] = [_message(m) for m in body_json["messages"]]
    if "prompt" in body_json:
        request["prompt"] = _prompt(body_json["prompt"])
    tools = body_json.get("tools") or body_json.get("functions")
    if body_json.get("store") is False:
        request["store"] = False
    return {**request, "tools": tools} if tools else request


def _is_option(key: str, value: Any) -> bool:
    return key not in _USER_KEYS | _CONTENT_KEYS and (key in _OPTIONS or not isinstance(value, dict | list))


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    return {**message, "content": [_part(p) for p in content]} if isinstance(content, list) else message


def _part(part: Any) -> Any:
    if not isinstance(part, dict) or part.get("type") in _TEXT_PARTS:
        return part
    return {"type": part.get("type"), "left_out": True}


def _prompt(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        texts = [p for p in prompt if isinstance(p, str)]
        return texts[0] if len(texts) == 1 == len(prompt) else texts or {"left_out_token_ids": True}
    return None


def answer_of(body: bytes) -> dict[str, Any]:
    """Return `id`, `choices` (each {message or text, finish_reason}), `usage` and `error` of an answer, streamed or not."""
    start = body.lstrip()[:1]
    if start == b"{":
        whole = read_json(body)
        return _whole(whole) if isinstance(whole, dict) else {}
    return _stream(_events(body))


def _whole(answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    parsed = [
        {name: read(choice[name]) for name, read in _READ.items() if choice.get(name) is not None}
        for choice in (choices if isinstance(choices, list) else [])
        if isinstance(choice, dict)
    ]
    return {"id": answer.get("id"), "choices": parsed, "usage": answer.get("usage"), "error": answer.get("error")}


def _message_text(message: Any) -> dict[str, Any]:
    """Return the texts and calls of a message, without token ids and log-probabilities, which would reveal masked texts."""
    return {k: v for k, v in _object(message).items() if isinstance(v, str) or k in {"tool_calls", "function_call"}}


_READ: dict[str, Callable[[Any], Any]] = {"message": _message_text, "text": str, "finish_reason": str}


def _events(body: bytes) -> list[Any]:
    """Parse the events of a stream; incomplete events at the end are dropped."""
    data = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
    data = [item for item in data if item != b"[DONE]"]
    try:
        return orjson.loads(b"[%s]" % b",".join(data))  # type: ignore[no-any-return]  # one parse of all events takes a third of the time
    except orjson.JSONDecodeError:
        return [read_json(item) for item in data]


def _stream(events: Iterable[Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"id": None, "usage": None, "error": None}
    choices: dict[int, _Choice] = {}
    for event in events:
        if not isinstance(event, dict):
            continue
        for key in answer:
            if value := event.get(key):
                answer[key] = value
        parts = event.get("choices")
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                index = _index(part)
                if index not in choices:
                    choices[index] = _Choice()
                choices[index].add(part)
    return {**answer, "choices": [choice.whole() for _, choice in sorted(choices.items())]}


class _Pieces(dict[str, list[str]]):
    """Texts by name that arrive in pieces."""

    def add(self, delta: Mapping[str, Any]) -> None:
        for key, value in delta.items():
            if isinstance(value, str):
                if key in self:
                    self[key].append(value)
                else:
                    self[key] = [value]

    def whole(self) -> dict[str, Any]:
        return {key: "".join(pieces) for key, pieces in self.items()}


class _Choice:
    """One choice of a streamed answer."""

    def __init__(self) -> None:
        self.message = _Pieces()
        self.text: list[str] = []
        self.calls: dict[int, tuple[_Pieces, _Pieces]] = {}  # per tool call: (id and type), (name and arguments of the function)
        self.finish_reason: str | None = None

    def add(self, part: Mapping[str, Any]) -> None:
        if isinstance(text := part.get("text"), str):
            self.text.append(text)
        self.finish_reason = part.get("finish_reason") or self.finish_reason
        delta = part.get("delta")
        if isinstance(delta, dict):
            self.message.add(delta)
            if "tool_calls" in delta:
                self._add_calls(delta["tool_calls"])

    def _add_calls(self, calls: Any) -> None:
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                outer, inner = self.calls.setdefault(_index(call), (_Pieces(), _Pieces()))
                outer.add(call)
                inner.add(_object(call.get("function")))

    def whole(self) -> dict[str, Any]:
        choice: dict[str, Any] = {"text": "".join(self.text)} if self.text else {}
        message = self.message.whole()
        if self.calls:
            message["tool_calls"] = [{**a.whole(), "function": b.whole()} for _, (a, b) in sorted(self.calls.items())]
        if message:
            role = message.pop("role", "assistant")
            choice["message"] = {"role": role if role in ("assistant", "tool") else "assistant", **message}
        return {**choice, "finish_reason": self.finish_reason} if self.finish_reason else choice


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _index(part: Mapping[str, Any]) -> int:
    index = part.get("index")
    return index if isinstance(index, int) else 0

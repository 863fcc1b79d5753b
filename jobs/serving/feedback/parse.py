"""What a raw exchange says: messages, options, answers put together from a stream. Nothing here is masked yet."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

_WHO_ASKS = frozenset({"user", "safety_identifier", "prompt_cache_key"})
_ASKED = frozenset({"model", "messages", "prompt", "tools", "functions", "stream"})
_OPTIONS = frozenset({"stop", "response_format", "tool_choice", "chat_template_kwargs"})  # that are more than one word or number
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


def read_json(body: bytes) -> Any:
    """A JSON body; None where it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:  # also lone surrogates and large integers, which others let in
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None


def request_of(body: bytes) -> dict[str, Any]:
    """`messages`, `prompt`, `tools` and `sampling` of a request; empty where the body is no JSON object.

    `store` is False where the client asks, as the OpenAI API lets it, that nothing be kept of what is said. Token ids, pictures
    and sound are left out: nobody could tell which personal data are in them.
    """
    asked = read_json(body)
    if not isinstance(asked, dict):
        return {}
    made: dict[str, Any] = {"sampling": {k: v for k, v in asked.items() if _is_option(k, v)}}
    if isinstance(asked.get("messages"), list):
        made["messages"] = [_message(m) for m in asked["messages"]]
    if "prompt" in asked:
        made["prompt"] = _prompt(asked["prompt"])
    tools = asked.get("tools") or asked.get("functions")
    if asked.get("store") is False:
        made["store"] = False
    return {**made, "tools": tools} if tools else made


def _is_option(key: str, value: Any) -> bool:
    return key not in _WHO_ASKS | _ASKED and (key in _OPTIONS or not isinstance(value, dict | list))


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
    """`id`, `choices` (each {message or text, finish_reason}), `usage` and `error` of an answer, streamed or not."""
    start = body.lstrip()[:1]
    if start == b"{":
        whole = read_json(body)
        return _whole(whole) if isinstance(whole, dict) else {}
    return _stream(_events(body))


def _whole(answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    kept = [
        {name: read(choice[name]) for name, read in _READ.items() if choice.get(name) is not None}
        for choice in (choices if isinstance(choices, list) else [])
        if isinstance(choice, dict)
    ]
    return {"id": answer.get("id"), "choices": kept, "usage": answer.get("usage"), "error": answer.get("error")}


def _said(message: Any) -> dict[str, Any]:
    """The words of an answer's message: neither token ids nor log-probabilities, which spell what is masked."""
    return {k: v for k, v in _object(message).items() if isinstance(v, str) or k in {"tool_calls", "function_call"}}


_READ: dict[str, Callable[[Any], Any]] = {"message": _said, "text": str, "finish_reason": str}


def _events(body: bytes) -> list[Any]:
    """The JSON of a stream's events; what was cut short, as the client's connection was, is left out."""
    data = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
    data = [one for one in data if one != b"[DONE]"]
    try:
        return orjson.loads(b"[%s]" % b",".join(data))  # type: ignore[no-any-return]  # all at once: a third of the time
    except orjson.JSONDecodeError:
        return [read_json(one) for one in data]


def _stream(events: Iterable[Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"id": None, "usage": None, "error": None}
    choices: dict[int, _Choice] = {}
    for event in events:
        if not isinstance(event, dict):
            continue
        for key in made:
            if found := event.get(key):
                made[key] = found
        parts = event.get("choices")
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                index = _index(part)
                if index not in choices:
                    choices[index] = _Choice()
                choices[index].add(part)
    return {**made, "choices": [choice.whole() for _, choice in sorted(choices.items())]}


class _Pieces(dict[str, list[str]]):
    """Texts that arrive in pieces, by name."""

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
    """One answer of a stream, put together."""

    def __init__(self) -> None:
        self.message = _Pieces()
        self.text: list[str] = []
        self.calls: dict[int, tuple[_Pieces, _Pieces]] = {}  # of a tool: id and type; name and arguments of the function
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
        made: dict[str, Any] = {"text": "".join(self.text)} if self.text else {}
        message = self.message.whole()
        if self.calls:
            message["tool_calls"] = [{**a.whole(), "function": b.whole()} for _, (a, b) in sorted(self.calls.items())]
        if message:
            role = message.pop("role", "assistant")
            made["message"] = {"role": role if role in ("assistant", "tool") else "assistant", **message}
        return {**made, "finish_reason": self.finish_reason} if self.finish_reason else made


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _index(part: Mapping[str, Any]) -> int:
    index = part.get("index")
    return index if isinstance(index, int) else 0

"""A client's request, as far as the gateway must understand it; the engine validates the rest."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from ropewalk.jobs.serving.serve.gateway.errors import RefusalError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OTHERS = ("/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/rerank")  # forwarded if the engine has them; never continued
TIMEOUT_HEADER = "x-request-timeout"
_SAFE_BRACKETS = 250  # with at most this many brackets a body is not nested too deep for orjson.dumps


@dataclass(frozen=True)
class ModelRequest:
    """A request to a model."""

    path: str
    body: bytes
    values: dict[str, Any] = field(repr=False)
    model: str | None
    stream: bool
    timeout_seconds: float | None

    @property
    def conversation(self) -> bytes:
        """Key of a conversation: the user and the first user message, equal for all its turns."""
        messages = self.values.get("messages")
        first: Any = self.values.get("prompt", self.values.get("input"))
        if isinstance(messages, list):
            user_contents = (m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "user")
            first = next(user_contents, None)
        return orjson.dumps([self.values.get("user"), first])

    @property
    def prompt_bytes(self) -> bytes:
        """The prompt in a canonical form: equal beginnings are equal bytes."""
        messages = self.values.get("messages")
        if isinstance(messages, list):
            tools = self.values.get("tools")
            return b"".join(orjson.dumps(part) for part in ([tools] if tools else []) + messages)
        prompt = self.values.get("prompt", self.values.get("input"))
        return prompt.encode() if isinstance(prompt, str) else orjson.dumps(prompt)

    @property
    def greedy(self) -> bool:
        """Return True if the answer is deterministic: no random sampling."""
        values = self.values
        sampled = values.get("temperature", 1) != 0 and values.get("top_k") != 1
        return not sampled and values.get("n") in (None, 1) and values.get("best_of") in (None, 1)


def read_request(path: str, headers: Mapping[str, str], body: bytes) -> ModelRequest:
    """Parse a request. Raises RefusalError if the body is not a JSON object or a known field is invalid."""
    try:
        values = orjson.loads(body)
        if body.count(b"[") + body.count(b"{") > _SAFE_BRACKETS:
            orjson.dumps(values)
    except orjson.JSONDecodeError as error:
        raise RefusalError(400, f"the body is not valid JSON in UTF-8: {error}", "invalid_json") from None
    except orjson.JSONEncodeError:
        raise RefusalError(400, "the body is nested too deeply", "invalid_json") from None
    if not isinstance(values, dict):
        raise RefusalError(400, f"the body must be a JSON object, not {_kind(values)}", "invalid_json")
    _check(values, path)
    model = values.get("model")
    timeout = _timeout(headers.get(TIMEOUT_HEADER, values.get("timeout")))
    return ModelRequest(path, body, values, model, bool(values.get("stream")), timeout)


def _check(values: dict[str, Any], path: str) -> None:
    types: dict[str, type] = {"model": str, "stream": bool, "stream_options": dict}
    if path == CHAT:
        types["messages"] = list
    for key, kind in types.items():
        if values.get(key) is not None and not isinstance(values[key], kind):
            raise RefusalError(400, f"{key} must be {_KINDS[kind]}, not {_kind(values[key])}", "invalid_type", param=key)
    if path == CHAT and not values.get("messages"):
        raise RefusalError(400, "messages: at least one message is required", "missing_required_parameter", param="messages")
    if path == CHAT and not all(isinstance(message, dict) for message in values["messages"]):
        raise RefusalError(400, "messages: each must be an object with role and content", "invalid_type", param="messages")
    if path == COMPLETIONS and values.get("prompt") is None:
        raise RefusalError(400, "prompt: a text or token ids are required", "missing_required_parameter", param="prompt")


def _timeout(value: Any) -> float | None:
    """Parse the client's timeout in seconds. Raises RefusalError."""
    if value is None:
        return None
    try:
        seconds = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RefusalError(400, "timeout: must be a positive number of seconds", "invalid_timeout", param="timeout")
    return seconds


_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")

"""Continuation of a broken stream by another replica, so that the client sees one stream.

continue_from   engines of ropewalk: the same request plus the tokens sent so far. The following bytes equal those the first
                replica would have sent, also for sampled answers, whose random numbers depend on seed and position only
token ids       vLLM: a completion of prompt and sent tokens, whose events are rewritten to match the earlier ones. Only for text
                of one choice, without options that depend on the whole answer (penalties, grammars, log-probabilities)
replay          other engines: the request is repeated and what the client already has is skipped. Exact if the answer is
                deterministic
"""

from enum import StrEnum
from typing import Any

import orjson

from ropewalk.jobs.serving.serve.gateway.exchange.events import SentStream
from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, COMPLETIONS, ModelRequest
from ropewalk.jobs.serving.serve.routes import Replica

_COPIED = frozenset(  # keys with the same meaning for the rest of an answer
    {"temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "user", "logit_bias", "ignore_eos"}
)
_DROPPED = frozenset(  # keys that only the start of an answer needs
    {
        *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "timeout"),
        *("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "chat_template_kwargs"),
    }
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # keys without effect at these values
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True, False),
}


class Method(StrEnum):
    """Method by which an engine continues an answer."""

    CONTINUE_FROM = "continue_from"
    BY_IDS = "token_ids"
    REPLAY = "replay"


# by engine; others replay
METHODS = {"transformers": Method.CONTINUE_FROM, "llamacpp": Method.CONTINUE_FROM, "vllm": Method.BY_IDS}


def model_for(replica: Replica, request: ModelRequest, version: str) -> str | None:
    """Return the engine's value for `model`, or None to keep the client's. Engines of ropewalk are addressed by version."""
    if replica.model_name is not None:
        return replica.model_name
    return version if replica.engine in METHODS or request.model is None else None


def initial_body(request: ModelRequest, method: Method, model: str | None, seed: int) -> bytes:
    """Return the first request to an engine; a stream also gets the keys that its continuation needs."""
    added: dict[str, Any] = {}
    if request.stream and request.path in (CHAT, COMPLETIONS) and method is not Method.REPLAY:
        added["return_token_ids"] = True
        if request.values.get("seed") is None and not request.greedy:
            added["seed"] = seed
    return with_keys(request, added, model)


def with_keys(request: ModelRequest, added: dict[str, Any], model: str | None) -> bytes:
    """Add keys to a body, changing its own bytes only if necessary."""
    if model is not None and request.model is not None and model != request.model:
        return orjson.dumps({**request.values, **added, "model": model})
    if model is not None and request.model is None:
        added = {**added, "model": model}
    if not added:
        return request.body
    if added.keys() & request.values.keys() or not request.values:
        return orjson.dumps({**request.values, **added})
    return request.body.rstrip()[:-1] + b"," + orjson.dumps(added)[1:]


def continue_from_body(request: ModelRequest, sent: SentStream, model: str | None, seed: int) -> bytes:
    """Return the request for the rest of an answer by `continue_from`."""
    first = sent.events[0] if sent.events else {}
    continue_from: dict[str, Any] = {"id": first.get("id"), "created": first.get("created"), "token_ids": sent.token_ids or []}
    continue_from["started"] = bool(sent.events)
    added: dict[str, Any] = {"return_token_ids": True, "continue_from": continue_from}
    if request.values.get("seed") is None and not request.greedy:
        added["seed"] = seed
    return with_keys(request, added, model)


def can_continue_by_ids(request: ModelRequest, sent: SentStream) -> bool:
    """Return True if the rest can be requested as a completion of token ids."""
    if request.path not in (CHAT, COMPLETIONS) or not sent.plain or not sent.prompt_ids or sent.token_ids is None:
        return False
    values = request.values
    if request.path == COMPLETIONS and not isinstance(values.get("prompt"), str):
        return False
    if max_tokens_of(request) is None:
        return False  # without a limit a completion ends after 16 tokens
    for key, value in values.items():
        if value is None or key in _COPIED or value in _NEUTRAL.get(key, ()):
            continue
        if key not in _DROPPED:
            return False
    return True


def token_ids_body(request: ModelRequest, sent: SentStream, model: str | None, seed: int) -> dict[str, Any]:
    """Return the request for the rest as a completion of token ids."""
    sent_ids = sent.token_ids or []
    values = {key: value for key, value in request.values.items() if key in _COPIED and value is not None}
    if not request.greedy:
        values.setdefault("seed", seed)
    values |= {"prompt": sent.prompt_ids + sent_ids, "stream": True, "return_token_ids": True}
    values["max_tokens"] = (max_tokens_of(request) or 0) - len(sent_ids)
    if (name := model or request.model) is not None:
        values["model"] = name
    if wants_usage(request):
        values["stream_options"] = {"include_usage": True}
    return values


def wants_usage(request: ModelRequest) -> bool:
    """Return True if the stream ends with a usage event."""
    return bool((request.values.get("stream_options") or {}).get("include_usage"))


def max_tokens_of(request: ModelRequest) -> int | None:
    """Return the request's limit of answer tokens, or None."""
    for key in ("max_completion_tokens", "max_tokens"):
        value = request.values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None

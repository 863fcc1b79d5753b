"""How a stream that broke off is continued by another replica, so that its client sees one stream.

continue_from   engines of this program: the same request, with the tokens that were sent; the bytes that follow are those that
                the first replica would have sent, for sampled answers too (their numbers are a function of seed and position)
token ids       vLLM: a completion of prompt and sent tokens, whose events are made to look like those before them. For text of
                one choice, without what counts tokens from the beginning of an answer (penalties, grammars, log-probabilities)
replay          any other: asked again as it was; what the client has is left out. Exact where the same request has one answer
"""

from enum import StrEnum
from typing import Any

import orjson

from ropewalk.jobs.serving.serve.gateway.exchange.asked import CHAT, COMPLETIONS, Asked
from ropewalk.jobs.serving.serve.gateway.exchange.sent import Sent
from ropewalk.jobs.serving.serve.routes import Replica

_TAKEN = frozenset(  # keys that mean the same for the rest of an answer as for all of it
    {"temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "user", "logit_bias", "ignore_eos"}
)
_LEFT_OUT = frozenset(  # keys that only the beginning of an answer needs
    {
        *("model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "timeout"),
        *("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "chat_template_kwargs"),
    }
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # keys that change nothing at these values
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


class Way(StrEnum):
    """How an engine continues an answer."""

    FROM = "continue_from"
    IDS = "token_ids"
    REPLAY = "replay"


WAYS = {"transformers": Way.FROM, "llamacpp": Way.FROM, "vllm": Way.IDS}


def way_of(engine: str) -> Way:
    """How an engine of this name continues an answer."""
    return WAYS.get(engine, Way.REPLAY)


def model_for(replica: Replica, asked: Asked, version: str) -> str | None:
    """What an engine wants to read as `model`; None: what the client has written. Those of this program are called by version."""
    if replica.model_name is not None:
        return replica.model_name
    return version if replica.engine in WAYS or asked.model is None else None


def first_body(asked: Asked, way: Way, model: str | None, seed: int) -> bytes:
    """The request as an engine is to read it: as it came, and for a stream with what its continuation needs."""
    added: dict[str, Any] = {}
    if asked.stream and asked.path in (CHAT, COMPLETIONS) and way is not Way.REPLAY:
        added["return_token_ids"] = True
        if asked.values.get("seed") is None and not asked.greedy:
            added["seed"] = seed
    return spliced(asked, added, model)


def spliced(asked: Asked, added: dict[str, Any], model: str | None) -> bytes:
    """The body with more keys. Its own bytes stay as they are, unless a key of it has to change."""
    if model is not None and asked.model is not None and model != asked.model:
        return orjson.dumps({**asked.values, **added, "model": model})
    if model is not None and asked.model is None:
        added = {**added, "model": model}
    if not added:
        return asked.body
    if added.keys() & asked.values.keys() or not asked.values:
        return orjson.dumps({**asked.values, **added})
    return asked.body.rstrip()[:-1] + b"," + orjson.dumps(added)[1:]


def from_body(asked: Asked, sent: Sent, model: str | None, seed: int) -> bytes:
    """The request for the rest of an answer, in the form of this program's engines."""
    first = sent.events[0] if sent.events else {}
    told: dict[str, Any] = {"id": first.get("id"), "created": first.get("created"), "token_ids": sent.token_ids or []}
    told["started"] = bool(sent.events)
    added: dict[str, Any] = {"return_token_ids": True, "continue_from": told}
    if asked.values.get("seed") is None and not asked.greedy:
        added["seed"] = seed
    return spliced(asked, added, model)


def by_ids(asked: Asked, sent: Sent) -> bool:
    """Whether the rest can be asked for as a completion of token ids."""
    if asked.path not in (CHAT, COMPLETIONS) or not sent.plain or not sent.prompt_ids or sent.token_ids is None:
        return False
    values = asked.values
    if asked.path == COMPLETIONS and not isinstance(values.get("prompt"), str):
        return False
    if limit_of(asked) is None:
        return False  # a completion without a limit ends after 16 tokens
    for key, value in values.items():
        if value is None or key in _TAKEN or value in _NEUTRAL.get(key, ()):
            continue
        if key not in _LEFT_OUT:
            return False
    return True


def ids_values(asked: Asked, sent: Sent, model: str | None, seed: int) -> dict[str, Any]:
    """The request for the rest, as a completion of token ids."""
    known = sent.token_ids or []
    values = {key: value for key, value in asked.values.items() if key in _TAKEN and value is not None}
    if not asked.greedy:
        values.setdefault("seed", seed)
    values |= {"prompt": sent.prompt_ids + known, "stream": True, "return_token_ids": True}
    values["max_tokens"] = (limit_of(asked) or 0) - len(known)
    if (name := model or asked.model) is not None:
        values["model"] = name
    if wants_usage(asked):
        values["stream_options"] = {"include_usage": True}
    return values


def wants_usage(asked: Asked) -> bool:
    """Whether the stream ends with an event that counts tokens."""
    return bool((asked.values.get("stream_options") or {}).get("include_usage"))


def limit_of(asked: Asked) -> int | None:
    """How many tokens the answer may have, where the request says so."""
    for key in ("max_completion_tokens", "max_tokens"):
        value = asked.values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None

"""What a request asks for, whichever of the two kinds it is: prompts, how answers are drawn, and how they are told."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropewalk.jobs.inference.engines.api.bodies import AnyRequest, ChatRequest, CompletionRequest, ToolChoice
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.prompts import Prompts, check_fits
from ropewalk.jobs.inference.engines.sampler import Sampler, Sampling

COMPLETION_TOKENS = 16  # of a completion that names no number, as OpenAI has it
MOST_ANSWERS = 128  # of one request


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One answer that is asked for."""

    index: int
    prompt: tuple[int, ...]
    sampling: Sampling
    stops: tuple[str, ...]
    drawn: tuple[int, ...] = ()  # by another process, and told to the client


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that can be answered."""

    id: str
    created: int
    model: str
    chat: bool
    choices: tuple[Choice, ...]
    num_prompt_tokens: int
    stream: bool
    include_usage: bool
    token_ids: bool
    logprobs: int | None
    echo: tuple[str, ...] = ()  # the texts of prompts that stand before answers, one a choice
    calls_tool: bool = False  # the answer is a call of a function
    started: bool = False  # the first event of a continued chat was sent


def read_request(request: AnyRequest, prompts: Prompts, sampler: Sampler, model: str) -> Asked:
    """What a checked body asks for. Raises ApiError for what does not fit, or what the engine cannot do."""
    if request.model != model:
        raise ApiError(
            f"there is no model {request.model!r} here; this is {model!r}", status=404, param="model", code="model_not_found"
        )
    _check_supported(request, sampler)
    chat = isinstance(request, ChatRequest)
    found = [prompts.of_chat(request)] if isinstance(request, ChatRequest) else prompts.of_completion(request)
    default = None if isinstance(request, ChatRequest) else COMPLETION_TOKENS
    param = "messages" if chat else "prompt"
    limits = [check_fits(prompt, _max_tokens(request), sampler.context, default, param) for prompt in found]
    sampling, stops = _sampling(request, prompts.vocabulary), _stops(request)
    choices = [
        Choice(
            index=place * (request.n or 1) + number,
            prompt=tuple(prompt),
            sampling=replace(sampling, max_tokens=limit, seed=sampling.seed + number),
            stops=stops,
        )
        for place, (prompt, limit) in enumerate(zip(found, limits, strict=True))
        for number in range(request.n or 1)
    ]
    if len(choices) > MOST_ANSWERS:
        raise ApiError(f"{len(choices)} answers are asked for in one request; ask for at most {MOST_ANSWERS}", param="n")
    echoes = isinstance(request, CompletionRequest) and request.echo
    asked = Asked(
        id=f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(16)}",
        created=int(time.time()),
        model=model,
        chat=chat,
        choices=tuple(choices),
        num_prompt_tokens=sum(map(len, found)),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        token_ids=bool(request.return_token_ids),
        logprobs=sampling.logprobs,
        echo=tuple(prompts.text.text(choice.prompt) for choice in choices) if echoes else (),
        calls_tool=_forced_tools(request) is not None,
    )
    return _continued(asked, request, prompts)


def _continued(asked: Asked, request: AnyRequest, prompts: Prompts) -> Asked:
    """The rest of what is asked, where another process has begun to answer. Raises ApiError."""
    if (begun := request.continue_from) is None:
        return asked
    if len(asked.choices) != 1 or not asked.stream or asked.echo or asked.calls_tool:
        raise ApiError(
            "only a stream of one answer can be continued, without `echo` and without a forced tool; ask again from the start",
            param="continue_from",
            code="cannot_continue",
        )
    choice, drawn = asked.choices[0], tuple(begun.token_ids)
    if len(drawn) > choice.sampling.max_tokens or not all(0 <= token < prompts.vocabulary for token in drawn):
        raise ApiError(
            "'continue_from.token_ids' are not all known, or cannot be of this request",
            param="continue_from",
            code="cannot_continue",
        )
    choice = replace(choice, drawn=drawn, sampling=replace(choice.sampling, continued=len(drawn)))
    return replace(asked, id=begun.id, created=begun.created, choices=(choice,), started=begun.started or bool(drawn))


def _check_supported(request: AnyRequest, sampler: Sampler) -> None:
    if request.stream_options is not None and not request.stream:
        raise ApiError("'stream_options' is for streams alone; set 'stream' to true", param="stream_options")
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(request, name):
            raise ApiError(f"this engine has no {name}; leave it out, or 0", param=name, code="unsupported_parameter")
    can = sampler.capabilities
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")
        if _forced_tools(request) == []:
            raise ApiError("'tool_choice' names a function that is not in 'tools'", param="tool_choice")
    else:
        if request.suffix:
            raise ApiError("this engine fills no gaps; leave 'suffix' out", param="suffix", code="unsupported_parameter")
        if request.best_of is not None and request.best_of != (request.n or 1):
            raise ApiError("'best_of' other than 'n' is not supported", param="best_of", code="unsupported_parameter")
        if request.echo and request.logprobs is not None and not can.prompt_logprobs:
            raise ApiError(
                "this engine has no log-probabilities of prompts; ask without 'echo', or serve by the engine transformers",
                param="echo",
                code="unsupported_parameter",
            )
    asks_json = request.response_format is not None and request.response_format.type != "text"
    if (asks_json or _forced_tools(request)) and not can.json_schema:
        raise ApiError(
            "this engine cannot hold an answer to a JSON schema: llguidance is not installed where it runs; pip install"
            " 'ropewalk[serve]'",
            param="response_format" if asks_json else "tool_choice",
            code="unsupported_parameter",
        )


def _max_tokens(request: AnyRequest) -> int | None:
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens
    return request.max_tokens


def _sampling(request: AnyRequest, vocabulary: int) -> Sampling:
    logprobs = _logprobs(request)
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    if bias and max(bias) >= vocabulary:
        raise ApiError(f"token id {max(bias)} is not below {vocabulary}, the size of the model's vocabulary", param="logit_bias")
    return Sampling(
        max_tokens=0,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        seed=request.seed if request.seed is not None else secrets.randbits(48),
        logprobs=logprobs,
        bias=bias,
        json_schema=_schema(request),
        end=not request.ignore_eos,
    )


def _logprobs(request: AnyRequest) -> int | None:
    if isinstance(request, CompletionRequest):
        return request.logprobs
    return request.top_logprobs or 0 if request.logprobs else None


def _stops(request: AnyRequest) -> tuple[str, ...]:
    given = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return tuple(stop for stop in given if stop)


def _schema(request: AnyRequest) -> Mapping[str, Any] | None:
    if (forced := _forced_tools(request)) is not None:
        return {"anyOf": list(forced)}
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise ApiError("'response_format.json_schema.schema' is missing", param="response_format.json_schema.schema")
    return wanted.json_schema.schema_


def _forced_tools(request: AnyRequest) -> Sequence[Mapping[str, Any]] | None:
    """Schemas of the calls that one must be made of; None where the model may answer by text."""
    if not isinstance(request, ChatRequest):
        return None
    if isinstance(request.tool_choice, ToolChoice):
        name = request.tool_choice.function.name
        tools = [tool.function for tool in request.tools or [] if tool.function.name == name]
    elif request.tool_choice == "required":
        tools = [tool.function for tool in request.tools or []]
    else:
        return None
    return [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": tool.parameters or {"type": "object"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]

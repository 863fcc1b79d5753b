"""A validated request of either kind: prompts, sampling parameters, and the form of the answer."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropewalk.jobs.inference.engines.api.bodies import AnyRequest, ChatRequest, CompletionRequest, ToolChoice
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.prompts import Prompts, check_fits
from ropewalk.jobs.inference.engines.sampler import Sampler, Sampling

COMPLETION_TOKENS = 16  # default of completions, as in OpenAI's API
MOST_ANSWERS = 128  # per request


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One requested answer."""

    index: int
    prompt: tuple[int, ...]
    sampling: Sampling
    stops: tuple[str, ...]
    drawn: tuple[int, ...] = ()  # tokens sampled by another process and sent to the client


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A request ready to be answered."""

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
    echo: tuple[str, ...] = ()  # texts of echoed prompts, one per choice
    calls_tool: bool = False  # the answer is a function call
    started: bool = False  # the first event of a continued chat was sent


def read_request(request: AnyRequest, prompts: Prompts, sampler: Sampler, model: str) -> GenerationRequest:
    """Convert a validated body. Raises ApiError if it does not fit or the engine lacks a feature."""
    if request.model != model:
        raise ApiError(
            f"the model {request.model!r} does not exist; this engine serves {model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    _check_supported(request, sampler)
    chat = isinstance(request, ChatRequest)
    num_answers = _num_prompts(request) * (request.n or 1)
    if num_answers > MOST_ANSWERS:
        raise ApiError(f"the request asks for {num_answers} answers; the limit is {MOST_ANSWERS}", param="n")
    if isinstance(request, ChatRequest):
        token_ids, default = [prompts.of_chat(request, sampler.context)], None
    else:
        token_ids, default = prompts.of_completion(request, sampler.context), COMPLETION_TOKENS
    param = "messages" if chat else "prompt"
    limits = [check_fits(prompt, _max_tokens(request), sampler.context, default, param) for prompt in token_ids]
    sampling, stops = _sampling(request, prompts.vocabulary), _stops(request)
    choices = [
        Choice(
            index=position * (request.n or 1) + number,
            prompt=tuple(prompt),
            sampling=replace(sampling, max_tokens=limit, seed=sampling.seed + number),
            stops=stops,
        )
        for position, (prompt, limit) in enumerate(zip(token_ids, limits, strict=True))
        for number in range(request.n or 1)
    ]
    echoes = isinstance(request, CompletionRequest) and request.echo
    parsed = GenerationRequest(
        id=f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(16)}",
        created=int(time.time()),
        model=model,
        chat=chat,
        choices=tuple(choices),
        num_prompt_tokens=sum(map(len, token_ids)),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        token_ids=bool(request.return_token_ids),
        logprobs=sampling.logprobs,
        echo=tuple(prompts.text.text(choice.prompt) for choice in choices) if echoes else (),
        calls_tool=_forced_tools(request) is not None,
    )
    return _apply_continue_from(parsed, request, prompts)


def _num_prompts(request: AnyRequest) -> int:
    prompt: Any = request.prompt if isinstance(request, CompletionRequest) else ""
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def _apply_continue_from(parsed: GenerationRequest, request: AnyRequest, prompts: Prompts) -> GenerationRequest:
    """Apply `continue_from`: the rest of an answer that another process began. Raises ApiError."""
    if (beginning := request.continue_from) is None:
        return parsed
    if len(parsed.choices) != 1 or not parsed.stream or parsed.echo or parsed.calls_tool:
        raise ApiError(
            "only a stream of one answer without `echo` or a forced tool can be continued; send the request again",
            param="continue_from",
            code="cannot_continue",
        )
    choice, drawn = parsed.choices[0], tuple(beginning.token_ids)
    if len(drawn) > choice.sampling.max_tokens or not all(0 <= token < prompts.vocabulary for token in drawn):
        raise ApiError(
            "'continue_from.token_ids' has unknown tokens, or more than the request allows",
            param="continue_from",
            code="cannot_continue",
        )
    choice = replace(choice, drawn=drawn, sampling=replace(choice.sampling, continued=len(drawn)))
    return replace(
        parsed, id=beginning.id, created=beginning.created, choices=(choice,), started=beginning.started or bool(drawn)
    )


def _check_supported(request: AnyRequest, sampler: Sampler) -> None:
    if request.stream_options is not None and not request.stream:
        raise ApiError("'stream_options' applies to streams only; set 'stream' to true", param="stream_options")
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(request, name):
            raise ApiError(
                f"this engine does not support {name}; leave it out, or set it to 0", param=name, code="unsupported_parameter"
            )
    can = sampler.capabilities
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError("'top_logprobs' needs 'logprobs' to be true", param="top_logprobs")
        if _forced_tools(request) == []:
            raise ApiError("'tool_choice' names a function that is not in 'tools'", param="tool_choice")
    else:
        if request.suffix:
            raise ApiError("this engine does not support 'suffix'; leave it out", param="suffix", code="unsupported_parameter")
        if request.best_of is not None and request.best_of != (request.n or 1):
            raise ApiError("'best_of' other than 'n' is not supported", param="best_of", code="unsupported_parameter")
        if request.echo and request.logprobs is not None and not can.prompt_logprobs:
            raise ApiError(
                "this engine has no log-probabilities of prompts; leave 'echo' out, or serve with the engine transformers",
                param="echo",
                code="unsupported_parameter",
            )
    asks_json = request.response_format is not None and request.response_format.type != "text"
    if (asks_json or _forced_tools(request)) and not can.json_schema:
        raise ApiError(
            "this engine cannot apply a JSON schema: llguidance is not installed on its machine; pip install 'ropewalk[serve]'",
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
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return tuple(stop for stop in stops if stop)


def _schema(request: AnyRequest) -> Mapping[str, Any] | None:
    if (forced := _forced_tools(request)) is not None:
        return {"anyOf": list(forced)}
    response_format = request.response_format
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return {}
    if response_format.json_schema is None or response_format.json_schema.schema_ is None:
        raise ApiError("'response_format.json_schema.schema' is missing", param="response_format.json_schema.schema")
    return response_format.json_schema.schema_


def _forced_tools(request: AnyRequest) -> Sequence[Mapping[str, Any]] | None:
    """Return the schemas of the calls of which the answer must be one; None if the model may answer with text."""
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

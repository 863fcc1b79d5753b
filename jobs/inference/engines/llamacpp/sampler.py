"""Sample tokens with llama.cpp's own server in this process: its slots, batches and prompt cache.

Requests go to its `/completion` with token ids, at a loopback port with a secret key.
"""

import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import orjson

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.prompts import Prompts
from ropewalk.jobs.inference.engines.json_schema import grammar_of
from ropewalk.jobs.inference.engines.llamacpp.plugin import LlamaCppEngine
from ropewalk.jobs.inference.engines.llamacpp.tokens import HiddenTokens
from ropewalk.jobs.inference.engines.sampler import UNKNOWN, Drawn, Sampling, Top

DEFAULT_CONTEXT = 4096  # default tokens of a slot; the cache is allocated at the start
# Prompt tokens per pass and thread. llama.cpp notices a closed connection only between passes, and other slots wait meanwhile:
# with one thread and 135M parameters a pass of 8 tokens takes 0.1 seconds, of 16 0.2 and of 128 1.2. A prompt of 281 tokens takes
# 3.0 seconds in passes of 8 and 2.4 in passes of 128; one of 1,209 takes 21 and 12.
READ_TOKENS_A_THREAD, MOST_READ_TOKENS = 8, 128
CACHE_MIB = 256  # for prompts whose slots were reassigned
QUIET = 1  # llama.cpp's verbosity: errors
SEEDS = 2**32 - 1  # the last value means random


class LlamaCppDraft(NamedTuple):
    """A smaller model for speculative decoding."""

    gguf: Path
    most: int  # maximum number of speculative tokens


class LlamaCppSampler:
    """The sampler of the engine llamacpp."""

    def __init__(
        self,
        gguf: Path,
        prompts: Prompts,
        *,
        slots: int,
        threads: int | None,
        context: int,
        draft: LlamaCppDraft | None = None,
    ) -> None:
        """Load a GGUF file. Raises ConfigError if llama.cpp cannot."""
        self.slots, self.context, self.vocabulary = slots, context, prompts.vocabulary
        self.ends: frozenset[int] = frozenset()  # it does not report the token that ended a text
        self.capabilities = LlamaCppEngine().capabilities
        self._hidden = HiddenTokens(prompts.text, prompts.vocabulary)
        self._key, self._num_requests = secrets.token_hex(16), 0
        self._server = _start_server(gguf, slots=slots, threads=threads, context=context, key=self._key, draft=draft)
        self._client = httpx2.AsyncClient(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=None,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=slots),
            trust_env=False,
        )

    async def draw(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Drawn]:
        """Yield the tokens after the prompt; closing the generator closes the connection, which frees the slot.

        llama.cpp's random numbers and grammar begin with the answer. To continue one that is sampled or has a JSON schema, it is
        generated again from its beginning, and the tokens already sent are skipped.
        """
        num_repeated = sampling.continued if sampling.temperature != 0 or sampling.json_schema is not None else 0
        body = _body(prompt[: len(prompt) - num_repeated], sampling, sampling.max_tokens - (sampling.continued - num_repeated))
        self._num_requests += 1
        try:
            async with aclosing(self._drawn(body)) as drawing:
                async for drawn in drawing:
                    if num_repeated:
                        num_repeated -= 1
                    else:
                        yield drawn
        finally:
            self._num_requests -= 1

    async def prompt_logprobs(self, prompt: Sequence[int], top: int) -> list[Drawn]:
        """Refuse: llama.cpp's server reports no log-probabilities of prompts."""
        raise ApiError("this engine has no log-probabilities of prompts", param="echo", code="unsupported_parameter")

    def load(self) -> tuple[int, int]:
        return min(self._num_requests, self.slots), max(self._num_requests - self.slots, 0)

    def close(self) -> None:
        """Do nothing: the server ends with the process."""

    async def _drawn(self, body: dict[str, Any]) -> AsyncGenerator[Drawn]:
        count, limit, pending = 0, body["n_predict"], list[Drawn]()
        try:
            async with self._client.stream("POST", "/completion", content=orjson.dumps(body)) as answer:
                if answer.status_code != 200:
                    raise _refusal(await answer.aread())
                async for line in _lines(answer.aiter_bytes()):
                    if not line.startswith(b"data: "):
                        if line.startswith(b"error: "):
                            raise _refusal(line[7:])
                        continue
                    message = orjson.loads(line[6:])
                    if "error" in message:
                        raise _refusal(line[6:])
                    if "prompt_progress" in message:  # requested only so that it writes and notices a closed connection
                        continue
                    fresh = self._tokens(message, count, limit)
                    count += len(fresh)
                    if message["stop"] and not fresh and pending:
                        fresh, pending = [pending[-1]._replace(ended="stop", text="")], pending[:-1]
                    # a token without text may be the last one, which only the next event shows
                    is_undecided = not message["stop"] and not message["content"] and fresh[-1].ended is None
                    for drawn in pending if is_undecided else (*pending, *fresh):
                        yield drawn
                    pending = fresh if is_undecided else []
        except httpx2.HTTPError as error:
            raise ApiError(
                f"llama.cpp failed to answer: {error or type(error).__name__}", status=500, code="engine_failed"
            ) from None

    def _tokens(self, message: dict[str, Any], count: int, limit: int) -> list[Drawn]:
        """Return the tokens of an event, of which `count` were reported before."""
        tokens, text = message["tokens"], message["content"]
        hidden = message["tokens_predicted"] - count - len(tokens)
        if message["stop"]:
            if message["stop_type"] != "limit":
                return [*[Drawn(UNKNOWN, text="")] * (hidden - 1), Drawn(UNKNOWN, text="", ended="stop")] if hidden else []
            left = [Drawn(UNKNOWN, text="")] * (limit - count)  # the text ends inside a character
            return [*left[:-1], left[-1]._replace(ended="length")] if left else []
        drawn = [_drawn(token, message.get("completion_probabilities")) for token in tokens]
        if hidden > 0:
            before = self._hidden.find(text, tokens[0], hidden) if len(tokens) == 1 else None
            if before is not None:
                drawn = [*map(Drawn, before), *drawn]
            else:
                drawn = [*[Drawn(UNKNOWN, text="")] * hidden, drawn[0]._replace(text=text), *drawn[1:]]
        if count + len(drawn) >= limit:
            drawn[-1] = drawn[-1]._replace(ended="length")
        return drawn


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the lines of an event stream, split at newlines only: generated text may contain U+2028 and the like."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _drawn(token: int, probabilities: Any) -> Drawn:
    for each in probabilities or []:
        if each["id"] == token:
            return Drawn(token, each["logprob"], tuple(Top(top["id"], top["logprob"]) for top in each["top_logprobs"]))
    return Drawn(token)


def _body(prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> dict[str, Any]:
    """Return a request to llama.cpp: temperature before cuts, as in transformers, and no penalties."""
    body: dict[str, Any] = {
        "prompt": list(prompt),
        "n_predict": max_tokens,
        "stream": True,
        "return_tokens": True,
        "return_progress": True,
        "response_fields": ["content", "tokens", "stop", "stop_type", "tokens_predicted"],
        "samplers": ["temperature", "top_k", "top_p", "min_p"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": 1.0,
        "seed": sampling.seed % SEEDS,
        "ignore_eos": not sampling.end,
        "n_probs": max(sampling.logprobs, 1) if sampling.logprobs is not None else 0,
    }
    if sampling.bias:
        body["logit_bias"] = [[token, value] for token, value in sampling.bias.items()]
    if sampling.json_schema is not None:
        body["grammar"] = f"%llguidance {{}}\n{grammar_of(sampling.json_schema)}"
    return body


def _refusal(raw: bytes) -> ApiError:
    try:
        error = orjson.loads(raw)
        error = error.get("error", error)
        status, message = int(error["code"]), str(error["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        status, message = 500, raw[:300].decode(errors="replace")
    code = "engine_failed" if status >= 500 else None
    return ApiError(f"llama.cpp refuses the request: {message}", status=status, code=code)


def _start_server(gguf: Path, *, slots: int, threads: int | None, context: int, key: str, draft: LlamaCppDraft | None) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port, params.api_keys = str(gguf), ["127.0.0.1"], 0, [key]
    params.n_parallel, params.n_ctx, params.kv_unified = slots, slots * context, False
    draft_tokens = draft.most if draft is not None else 0
    cores = len(os.sched_getaffinity(0))
    if threads is None and cores < (os.cpu_count() or cores):
        threads = cores  # llama.cpp's default is all cores of the machine, but a job may have only some of them
    reads = min(MOST_READ_TOKENS, READ_TOKENS_A_THREAD * (threads or cores))
    params.n_batch = params.n_ubatch = reads + slots * (1 + draft_tokens)  # plus one token per slot
    params.cache_ram_mib, params.warmup, params.ui, params.verbosity = CACHE_MIB, False, False, QUIET
    params.fit_params, params.ctx_shift = False, False
    params.endpoint_slots, params.endpoint_metrics = False, False
    if threads is not None:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if draft is not None:
        _draft(params.speculative, draft, threads)
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise ConfigError(f"{gguf}: llama.cpp cannot load it ({error}); is it damaged, or is there too little memory?") from None


def _draft(speculative: Any, draft: LlamaCppDraft, threads: int | None) -> None:
    import xllamacpp

    speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    speculative.draft.mparams.path, speculative.draft.n_max = str(draft.gguf), draft.most
    if threads is not None:
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = threads

"""Draw tokens with llama.cpp's own server, which runs in this process: its slots, its batches, its cache of prompts.

It is asked by its own `/completion` with token ids, at a loopback port with a key that nobody else has.
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

DEFAULT_CONTEXT = 4096  # tokens of a slot, of a model that can see more: its cache takes memory from the start
# Of a prompt that are read at once, a thread. llama.cpp sees only between two such pieces that nobody waits any more, and other
# slots draw no token meanwhile: with one thread and 135M parameters a piece of 8 takes 0.1 seconds, of 16 0.2 and of 128 1.2.
# 281 tokens are read in 3.0 seconds in pieces of 8, and in 2.4 in pieces of 128; 1,209 in 21 and in 12.
READ_TOKENS_A_THREAD, MOST_READ_TOKENS = 8, 128
CACHE_MIB = 256  # of prompts of slots that others have taken over
QUIET = 1  # llama.cpp's verbosity: errors
SEEDS = 2**32 - 1  # its last one means: any


class LlamaCppDraft(NamedTuple):
    """A smaller model that guesses ahead."""

    gguf: Path
    most: int  # tokens that it guesses at once


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
        """Load a GGUF file. Raises ConfigError where llama.cpp cannot."""
        self.slots, self.context, self.vocabulary = slots, context, prompts.vocabulary
        self.ends: frozenset[int] = frozenset()  # it does not say which token has ended a text
        self.capabilities = LlamaCppEngine().capabilities
        self._hidden = HiddenTokens(prompts.text, prompts.vocabulary)
        self._key, self._asked = secrets.token_hex(16), 0
        self._server = _started(gguf, slots=slots, threads=threads, context=context, key=self._key, draft=draft)
        self._client = httpx2.AsyncClient(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=None,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=slots),
            trust_env=False,
        )

    async def draw(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Drawn]:
        """What follows the prompt, token by token; closing the generator closes the connection, which frees the slot.

        Its random numbers and its grammar begin with the answer. So one that is drawn, or of a JSON schema, is drawn again from
        its beginning where it is to be continued, and what is known of it left out.
        """
        again = sampling.continued if sampling.temperature != 0 or sampling.json_schema is not None else 0
        body = _body(prompt[: len(prompt) - again], sampling, sampling.max_tokens - (sampling.continued - again))
        self._asked += 1
        try:
            async with aclosing(self._drawn(body)) as drawing:
                async for drawn in drawing:
                    if again:
                        again -= 1
                    else:
                        yield drawn
        finally:
            self._asked -= 1

    async def prompt_logprobs(self, prompt: Sequence[int], top: int) -> list[Drawn]:
        """Refused: llama.cpp's server does not say how likely a prompt was."""
        raise ApiError("this engine has no log-probabilities of prompts", param="echo", code="unsupported_parameter")

    def load(self) -> tuple[int, int]:
        """Requests that are answered, and that wait."""
        return min(self._asked, self.slots), max(self._asked - self.slots, 0)

    def close(self) -> None:
        """Nothing: the server ends with the process."""

    async def _drawn(self, body: dict[str, Any]) -> AsyncGenerator[Drawn]:
        count, limit, held = 0, body["n_predict"], list[Drawn]()
        try:
            async with self._client.stream("POST", "/completion", content=orjson.dumps(body)) as answer:
                if answer.status_code != 200:
                    raise _refusal(await answer.aread())
                async for line in _lines(answer.aiter_bytes()):
                    if not line.startswith(b"data: "):
                        if line.startswith(b"error: "):
                            raise _refusal(line[7:])
                        continue
                    found = orjson.loads(line[6:])
                    if "error" in found:
                        raise _refusal(line[6:])
                    if "prompt_progress" in found:  # asked for so that it writes, and sees that the connection is closed
                        continue
                    fresh = self._tokens(found, count, limit)
                    count += len(fresh)
                    if found["stop"] and not fresh and held:
                        fresh, held = [held[-1]._replace(ended="stop", text="")], held[:-1]
                    # a token without text may be the one that ends it, which only the next event tells
                    waits = not found["stop"] and not found["content"] and fresh[-1].ended is None
                    for drawn in held if waits else (*held, *fresh):
                        yield drawn
                    held = fresh if waits else []
        except httpx2.HTTPError as error:
            raise ApiError(
                f"llama.cpp does not answer: {error or type(error).__name__}", status=500, code="engine_failed"
            ) from None

    def _tokens(self, found: dict[str, Any], count: int, limit: int) -> list[Drawn]:
        """What an event of llama.cpp's says that was drawn since the one before, of `count` tokens."""
        tokens, text = found["tokens"], found["content"]
        hidden = found["tokens_predicted"] - count - len(tokens)
        if found["stop"]:
            if found["stop_type"] != "limit":
                return [*[Drawn(UNKNOWN, text="")] * (hidden - 1), Drawn(UNKNOWN, text="", ended="stop")] if hidden else []
            left = [Drawn(UNKNOWN, text="")] * (limit - count)  # the text ends within a character
            return [*left[:-1], left[-1]._replace(ended="length")] if left else []
        drawn = [_drawn(token, found.get("completion_probabilities")) for token in tokens]
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
    """The lines of a stream of events. What a model says may hold what only Unicode calls the end of a line, such as U+2028."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _drawn(token: int, told: Any) -> Drawn:
    for each in told or []:
        if each["id"] == token:
            return Drawn(token, each["logprob"], tuple(Top(top["id"], top["logprob"]) for top in each["top_logprobs"]))
    return Drawn(token)


def _body(prompt: Sequence[int], sampling: Sampling, max_tokens: int) -> dict[str, Any]:
    """A request to llama.cpp: temperature first, then cuts, as in transformers; no penalties."""
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


def _started(gguf: Path, *, slots: int, threads: int | None, context: int, key: str, draft: LlamaCppDraft | None) -> Any:
    import xllamacpp

    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.hostnames, wanted.port, wanted.api_keys = str(gguf), ["127.0.0.1"], 0, [key]
    wanted.n_parallel, wanted.n_ctx, wanted.kv_unified = slots, slots * context, False
    guesses = draft.most if draft is not None else 0
    usable = len(os.sched_getaffinity(0))
    if threads is None and usable < (os.cpu_count() or usable):
        threads = usable  # llama.cpp's own number is that of the machine's cores, and on shared nodes a job has some of them
    reads = min(MOST_READ_TOKENS, READ_TOKENS_A_THREAD * (threads or usable))
    wanted.n_batch = wanted.n_ubatch = reads + slots * (1 + guesses)  # each slot may draw a token beside it
    wanted.cache_ram_mib, wanted.warmup, wanted.ui, wanted.verbosity = CACHE_MIB, False, False, QUIET
    wanted.fit_params, wanted.ctx_shift = False, False
    wanted.endpoint_slots, wanted.endpoint_metrics = False, False
    if threads is not None:
        wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = threads
    if draft is not None:
        _draft(wanted.speculative, draft, threads)
    try:
        return xllamacpp.Server(wanted)
    except RuntimeError as error:
        raise ConfigError(
            f"{gguf}: llama.cpp does not load it ({error}); is it damaged, or is there too little memory?"
        ) from None


def _draft(speculative: Any, draft: LlamaCppDraft, threads: int | None) -> None:
    import xllamacpp

    speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    speculative.draft.mparams.path, speculative.draft.n_max = str(draft.gguf), draft.most
    if threads is not None:
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = threads

"""A GGUF file opened by llama.cpp in this process: token ids, and log-probabilities of a text."""

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.gguf.ggml import Float32s, Parameters, library

# llama.cpp guarantees no layout of a context's parameters: they are changed only if all known defaults are at their expected
# offsets: sizes, then options that default to the model's, then the number formats of the cache.
_SIZES = struct.Struct("<4I")  # n_ctx, n_batch, n_ubatch, n_seq_max
_UNSET = struct.Struct("<4i")  # rope scaling, pooling, attention, flash attention (0: off)
_YARN = struct.Struct("<4f")  # yarn: extrapolation, attention, fast and slow beta
_CACHE = struct.Struct("<2i")  # ggml_type of keys and values
_DEFAULTS = ((_SIZES, 0, (512, 2048, 512, 1)), (_UNSET, 40, (-1,) * 4), (_YARN, 64, (-1.0,) * 4), (_CACHE, 104, (1, 1)))
_FLASH = 52


class LlamaCpp:
    """A model in llama.cpp that computes one sequence at a time. Close it, or use it as a context manager."""

    def __init__(self, path: Path, *, context: int = 512, threads: int = 1, exact: bool = False) -> None:
        """Open a file; `context` tokens can be computed at once.

        It computes as the server does, with a cache in F16; with `exact` the cache is F32 and attention plain. Raises ConfigError
        if llama.cpp cannot open the file.
        """
        self._lib = library()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise ConfigError(f"{path}: llama.cpp cannot open it: it is damaged, or its architecture is not supported")
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary_size = int(self._lib.llama_vocab_n_tokens(self._vocabulary))
        self.bytes = int(self._lib.llama_model_size(self._model))
        self._context = self._lib.llama_init_from_model(self._model, _context_parameters(self._lib, context, exact))
        if not self._context:
            raise ConfigError(f"{path}: llama.cpp cannot allocate a context of {context} tokens; choose a shorter one")
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self._batch = self._lib.llama_batch_init(context, 0, 1)
        self._limit = context

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Return the token ids of a text; with `parse_special` the text of a special token becomes that token."""
        content = text.encode()
        room = (ctypes.c_int32 * (len(content) + 8))()
        count = self._lib.llama_tokenize(self._vocabulary, content, len(content), room, len(room), add_special, parse_special)
        assert count >= 0, "a token takes a byte at least"
        return list(room[:count])

    def is_end(self, token: int) -> bool:
        """Return True if llama.cpp stops generating at this token."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    def log_probabilities(self, tokens: Sequence[int]) -> Float32s:
        """Return the log-probabilities [T, V] of the token after each of these tokens, computed from an empty context."""
        self.clear()
        self._compute(tokens, 0, last_only=False)
        return log_softmax(np.stack([self._logits(index) for index in range(len(tokens))]))

    def logits(self, tokens: Sequence[int], start: int) -> Float32s:
        """Return the logits [V] after the last of these tokens; the first of them is token number `start` of the context."""
        self._compute(tokens, start, last_only=True)
        return self._logits(len(tokens) - 1).copy()

    def clear(self) -> None:
        """Empty the context."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _compute(self, tokens: Sequence[int], start: int, *, last_only: bool) -> None:
        assert 0 < len(tokens) <= self._limit - start, f"{len(tokens)} tokens after {start}, a context of {self._limit}"
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, start + index, 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = int(not last_only or index == len(tokens) - 1)
        if self._lib.llama_decode(self._context, batch):
            raise ConfigError(f"llama.cpp cannot compute {len(tokens)} tokens at once; choose a shorter sequence")

    def _logits(self, index: int) -> Float32s:
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, index), (self.vocabulary_size,))

    def close(self) -> None:
        """Free the memory."""
        if self._model:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._model = None

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def log_softmax(logits_TV: Float32s) -> Float32s:
    """Return log-probabilities over the last dim; sums are float64, because a KL adds many small terms."""
    log_probs_TV = np.empty_like(logits_TV)
    for index, row in enumerate(logits_TV):
        top = row.max()
        log_probs_TV[index] = row - (top + np.log(np.exp(row - top, dtype=np.float64).sum()))
    return log_probs_TV


def _context_parameters(lib: object, context: int, exact: bool) -> Parameters:
    parameters: Parameters = lib.llama_context_default_params()  # type: ignore[attr-defined]  # a C library has no types
    for form, offset, expected in _DEFAULTS:
        if (values := form.unpack_from(parameters.content, offset)) != expected:
            raise ConfigError(
                f"this version of xllamacpp has other parameters ({values} for {expected}); install another version"
            )
    _SIZES.pack_into(parameters.content, 0, context, context, context, 1)
    if exact:
        _CACHE.pack_into(parameters.content, 104, 0, 0)
        struct.pack_into("<i", parameters.content, _FLASH, 0)
    return parameters

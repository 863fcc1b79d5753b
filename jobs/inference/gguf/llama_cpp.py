"""A GGUF file opened by llama.cpp in this process: token ids, log-probabilities of a given text."""

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.gguf.ggml import Float32s, Parameters, library

# A context's parameters, of which llama.cpp promises no layout: what is changed here is changed only if all that is known of the
# defaults is found where it is expected. Sizes; then those that say "from the model"; then the number formats of the cache.
_SIZES = struct.Struct("<4I")  # n_ctx, n_batch, n_ubatch, n_seq_max
_UNSET = struct.Struct("<4i")  # rope scaling, pooling, attention, flash attention (0: off)
_YARN = struct.Struct("<4f")  # yarn: extrapolation, attention, fast and slow beta
_CACHE = struct.Struct("<2i")  # ggml_type of keys and values
_PLACES = ((_SIZES, 0, (512, 2048, 512, 1)), (_UNSET, 40, (-1,) * 4), (_YARN, 64, (-1.0,) * 4), (_CACHE, 104, (1, 1)))
_FLASH = 52


class LlamaCpp:
    """A model in llama.cpp, one sequence at a time. Close it, or use it as a context."""

    def __init__(self, path: Path, *, context: int = 512, threads: int = 1, exact: bool = False) -> None:
        """Open a file; `context` tokens can be computed at once.

        It computes as the server does, whose cache is F16; `exact`: with a cache in F32 and plain attention. Raises ConfigError
        for a file that llama.cpp does not open.
        """
        self._lib = library()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise ConfigError(f"{path}: llama.cpp does not open it: it is damaged, or of an architecture that it does not know")
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary_size = int(self._lib.llama_vocab_n_tokens(self._vocabulary))
        self.bytes = int(self._lib.llama_model_size(self._model))
        self._context = self._lib.llama_init_from_model(self._model, _context_parameters(self._lib, context, exact))
        if not self._context:
            raise ConfigError(f"{path}: llama.cpp makes no context of {context} tokens; choose a shorter one")
        self._lib.llama_set_n_threads(self._context, threads, threads)
        self._batch = self._lib.llama_batch_init(context, 0, 1)
        self._limit = context

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text; `parse_special`: a special token's own text is that token."""
        content = text.encode()
        room = (ctypes.c_int32 * (len(content) + 8))()
        count = self._lib.llama_tokenize(self._vocabulary, content, len(content), room, len(room), add_special, parse_special)
        assert count >= 0, "a token takes a byte at least"
        return list(room[:count])

    def is_end(self, token: int) -> bool:
        """Whether llama.cpp stops generating at this token."""
        return bool(self._lib.llama_vocab_is_eog(self._vocabulary, token))

    def log_probabilities(self, tokens: Sequence[int]) -> Float32s:
        """Log-probabilities [T, V] of what follows each of these tokens, computed from an empty context."""
        self.clear()
        self._compute(tokens, 0, last_only=False)
        return log_softmax(np.stack([self._logits(place) for place in range(len(tokens))]))

    def logits(self, tokens: Sequence[int], start: int) -> Float32s:
        """Logits [V] of what follows the last of these tokens, the first of which is the context's token number `start`."""
        self._compute(tokens, start, last_only=True)
        return self._logits(len(tokens) - 1).copy()

    def clear(self) -> None:
        """Forget the context."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _compute(self, tokens: Sequence[int], start: int, *, last_only: bool) -> None:
        assert 0 < len(tokens) <= self._limit - start, f"{len(tokens)} tokens after {start}, a context of {self._limit}"
        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, start + place, 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = int(not last_only or place == len(tokens) - 1)
        if self._lib.llama_decode(self._context, batch):
            raise ConfigError(f"llama.cpp does not compute {len(tokens)} tokens at once; choose a shorter sequence")

    def _logits(self, place: int) -> Float32s:
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, place), (self.vocabulary_size,))

    def close(self) -> None:
        """Give the memory back."""
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
    """Log-probabilities of logits, over the last dim; sums in float64, for many small terms make a KL."""
    found = np.empty_like(logits_TV)
    for place, row in enumerate(logits_TV):
        top = row.max()
        found[place] = row - (top + np.log(np.exp(row - top, dtype=np.float64).sum()))
    return found


def _context_parameters(lib: object, context: int, exact: bool) -> Parameters:
    parameters: Parameters = lib.llama_context_default_params()  # type: ignore[attr-defined]  # a C library has no types
    for form, place, expected in _PLACES:
        if (found := form.unpack_from(parameters.content, place)) != expected:
            raise ConfigError(f"this version of xllamacpp has other parameters ({found} for {expected}); install another version")
    _SIZES.pack_into(parameters.content, 0, context, context, context, 1)
    if exact:
        _CACHE.pack_into(parameters.content, 104, 0, 0)
        struct.pack_into("<i", parameters.content, _FLASH, 0)
    return parameters

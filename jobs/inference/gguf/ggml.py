"""llama.cpp's C library from the xllamacpp wheel, called without its server."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.errors import ConfigError

Float32s = NDArray[np.float32]
Bytes = NDArray[np.uint8]
_PARAMETERS_BYTES = 1024  # larger than the parameters of any version: they are passed by value, and the rest is not read


class Parameters(ctypes.Structure):
    """Parameters of a model or a context as this version of the library creates them; opaque but for their first fields."""

    _fields_ = (("content", ctypes.c_uint8 * _PARAMETERS_BYTES),)


class Batch(ctypes.Structure):
    """Tokens to compute (llama_batch)."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_POINTER, _INT, _LONG, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p
_FLOATS = ctypes.POINTER(ctypes.c_float)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {  # name: (result type, argument types)
    "ggml_quantize_chunk": (ctypes.c_size_t, (ctypes.c_int, _FLOATS, _POINTER, _LONG, _LONG, _LONG, _FLOATS)),
    "ggml_row_size": (ctypes.c_size_t, (ctypes.c_int, _LONG)),
    "ggml_blck_size": (_LONG, (ctypes.c_int,)),
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LOG, _POINTER)),
    "llama_model_default_params": (Parameters, ()),
    "llama_context_default_params": (Parameters, ()),
    "llama_model_load_from_file": (_POINTER, (_TEXT, Parameters)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_model_size": (ctypes.c_uint64, (_POINTER,)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_vocab_is_eog": (ctypes.c_bool, (_POINTER, _INT)),
    "llama_init_from_model": (_POINTER, (_POINTER, Parameters)),
    "llama_free": (None, (_POINTER,)),
    "llama_set_n_threads": (None, (_POINTER, _INT, _INT)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, ctypes.c_bool)),
    "llama_tokenize": (_INT, (_POINTER, _TEXT, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool)),
    "llama_batch_init": (Batch, (_INT, _INT, _INT)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (_INT, (_POINTER, Batch)),
    "llama_get_logits_ith": (_FLOATS, (_POINTER, _INT)),
}


@cache
def library() -> Any:
    """Return llama.cpp's functions. Raises ConfigError if xllamacpp is not installed or its version lacks one of them."""
    try:
        import xllamacpp
    except ImportError as error:
        raise ConfigError(f"llama.cpp is not installed ({error}); pip install 'ropewalk[serve]' brings it (xllamacpp)") from None
    lib = ctypes.CDLL(str(next(Path(str(xllamacpp.__file__)).parent.glob("xllamacpp*.so"))))
    for name, (result_type, argument_types) in _SIGNATURES.items():
        if not hasattr(lib, name):
            raise ConfigError(f"xllamacpp {xllamacpp.__version__} has no function {name}; install another version of it")
        function = getattr(lib, name)
        function.restype, function.argtypes = result_type, argument_types
    lib.llama_log_set(_SILENT, None)
    lib.llama_backend_init()
    return lib


def _drop(level: int, text: bytes, data: object) -> None:
    """Drop the library's log messages: errors come back as results."""


_SILENT = _LOG(_drop)  # must outlive every call


def block_size(number: int) -> int:
    """Return the number of neighbours in a row that a format (ggml_type) quantizes together."""
    return int(library().ggml_blck_size(number))


def quantize(values: Float32s, number: int, importance: Float32s | None = None) -> Bytes:
    """Quantize rows [R, C] to a format (ggml_type); return bytes [R, bytes per row].

    `importance` [C] weighs the error of each column. Block sizes that do not divide C are a mistake of the caller.
    """
    lib = library()
    rows, columns = values.shape
    assert columns % lib.ggml_blck_size(number) == 0, f"{columns} columns"
    content = np.ascontiguousarray(values, dtype=np.float32)
    out = np.empty((rows, lib.ggml_row_size(number, columns)), dtype=np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32).ctypes.data_as(_FLOATS)
    source, target = content.ctypes.data_as(_FLOATS), out.ctypes.data

    def part(first: int) -> int:
        return int(lib.ggml_quantize_chunk(number, source, target, first * columns, min(each, rows - first), columns, weights))

    threads = len(os.sched_getaffinity(0))  # rows are independent, and the library's functions need no lock
    each = max(1, -(-rows // threads))
    with ThreadPoolExecutor(threads) as pool:
        written = sum(pool.map(part, range(0, rows, each)))
    assert written == out.nbytes, (written, out.nbytes)
    return out

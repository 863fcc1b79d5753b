"""Decorator that compiles a function over arrays to machine code, cached on disk with the other kernels of this version."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from ropewalk.datapipe.text.compiled import use_cache

F = TypeVar("F", bound=Callable[..., Any])

use_cache()


def kernel(function: F) -> F:
    """Compile `function` for the types it is called with. It must be deterministic: no fast maths, no threads."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))

"""Compile a function over arrays to machine code, once for all processes: numba keeps what it compiled on disk."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """`function` compiled for the types that it is called with. It must be deterministic: no fast maths, no threads."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))

"""Places of compiled kernels in the cache: by module, not by path, so that all environments of a machine share them."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core.caching import UserProvidedCacheLocator

from ropewalk.datapipe.text.compiled import cache_folder

PACKAGE = __name__.partition(".")[0]


class KernelLocator(UserProvidedCacheLocator):  # type: ignore[misc]
    """The place of a compiled function of this program; numba places functions of others itself."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        self._cache_path = str(cache_folder() / function.__module__)
        self._source = Path(file)

    def get_source_stamp(self) -> str:
        """Return a hash of the module: installations of one version differ in their times of modification."""
        return hashlib.sha256(self._source.read_bytes()).hexdigest()

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Any:
        return super().from_function(function, file) if function.__module__.startswith(f"{PACKAGE}.") else None

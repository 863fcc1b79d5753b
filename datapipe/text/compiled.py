"""Import modules of numba kernels through a compilation cache: each version of the kernels is compiled once per machine."""

import fcntl
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from ropewalk import datapipe

log = logging.getLogger(__name__)

LOCATOR = "ropewalk.datapipe.text.kernel_cache.KernelLocator"
NUMBAS_LOCATORS = "UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator,IPythonCacheLocator,ZipCacheLocator"


def kernels(module: str) -> Any:
    """Import a module of kernels by name, compiled or from the cache.

    The first process of a machine that needs the module compiles it while others wait. The cache is in
    $ROPEWALK_CACHE, else $XDG_CACHE_HOME/ropewalk, else ~/.cache/ropewalk, else a temporary directory.
    """
    if module in sys.modules:
        return sys.modules[module]
    with _alone(use_cache()):
        return import_module(module)


def use_cache() -> Path:
    """Have numba keep compiled kernels in the cache, and return its directory."""
    folder, config = cache_folder(), import_module("numba").config
    config.CACHE_DIR = config.CACHE_DIR or str(folder)
    locators = config.CACHE_LOCATOR_CLASSES or NUMBAS_LOCATORS
    if LOCATOR not in locators:
        config.CACHE_LOCATOR_CLASSES = f"{LOCATOR},{locators}"
    return folder


@cache
def cache_folder() -> Path:
    """Return a writable directory named by the content of all kernels; numba itself only checks one file at a time."""
    name = f"kernels-{_version()}"
    for root in _roots():
        folder = root / name
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="ropewalk-kernels-"))


def _roots() -> Iterator[Path]:
    if named := os.environ.get("ROPEWALK_CACHE"):
        yield Path(named)
    if named := os.environ.get("XDG_CACHE_HOME"):
        yield Path(named) / "ropewalk"
    try:
        yield Path.home() / ".cache/ropewalk"
    except RuntimeError:  # a user without a home
        log.debug("no home directory for compiled kernels")
    folder = Path(tempfile.gettempdir()) / f"ropewalk-{os.getuid()}"
    if not folder.exists() or folder.stat().st_uid == os.getuid():  # cached code is executed: trust only our own files
        yield folder


def _version() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(Path(datapipe.__path__[0]).rglob("*kernels.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of the cache; on a file system without locks, every process compiles for itself."""
    with (folder / "lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            log.debug("%s: no lock (%s)", folder, error)
        yield

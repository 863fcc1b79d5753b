"""Versions of installed packages, read from the names of their metadata folders."""

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec

REMEDY = "pip install 'ropewalk[train]'"


def is_light() -> bool:
    """Return True if only the client is installed, without what nodes need."""
    return find_spec("torch") is None


def installed_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package, or None if it is not installed. Names are lower case, spelt as in folder names.

    `importlib.metadata` gives the same versions, but parses every package's metadata: 15 ms per submission.
    """
    versions: dict[str, str | None] = dict.fromkeys(names)
    for directory in reversed(sys.path):  # the first directory on the path takes precedence
        try:
            folders = os.listdir(directory or ".")
        except OSError:
            continue
        for folder in folders:
            stem, _, kind = folder.rpartition(".")
            name, _, version = stem.partition("-")
            if kind in {"dist-info", "egg-info"} and version and name.lower() in versions:
                versions[name.lower()] = version.partition("-")[0]  # in an egg's name, Python's version follows
    return versions

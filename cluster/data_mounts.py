"""Directories of data under names, `mounts` of a cluster's profile: jobs name them as data://NAME/PATH."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from ropewalk.cluster.errors import ConfigError

SCHEME = "data://"
MOUNTS_HELP = "directories of data by name, {NAME: /path}; jobs name them as data://NAME, whatever their path on a cluster"


def check_mount_name(name: str) -> str:
    """Return a valid name of a mount. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"{name!r} is not a name for data://NAME: letters, digits, _, - and .")
    return name


def _check_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} must be an absolute path")
    return path.rstrip("/") or "/"


Mounts = dict[Annotated[str, AfterValidator(check_mount_name)], Annotated[str, AfterValidator(_check_path)]]


def mounted_path(location: str, mounts: Mapping[str, str], cluster: str) -> str:
    """Return the path on a cluster of a location such as data://corpus/tokens; others are returned unchanged.

    Raises ConfigError if the cluster has no such mount.
    """
    if not location.startswith(SCHEME):
        return location
    name, _, inside = location.removeprefix(SCHEME).partition("/")
    if name not in mounts:
        has = f"it has {', '.join(sorted(mounts))}" if mounts else "it has none"
        raise ConfigError(
            f"{location}: cluster {cluster!r} has no mount {name!r} ({has}); add `mounts: {{{name}: /path}}` to its profile"
        )
    return str(PurePosixPath(mounts[name], inside))


def mount_location(path: str, mounts: Mapping[str, str]) -> str:
    """Return the location data://NAME/... of a path below a mount, the innermost one; other paths are returned unchanged."""
    below = [(folder, name) for name, folder in mounts.items() if PurePosixPath(path).is_relative_to(folder)]
    if not below:
        return path
    folder, name = max(below)
    inside = PurePosixPath(path).relative_to(folder)
    return f"{SCHEME}{name}" + (f"/{inside}" if inside.parts else "")

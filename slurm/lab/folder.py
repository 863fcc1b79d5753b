"""Whether a test cluster's folder is this user's alone to change: its daemons, root's perhaps, run what lies there."""

import os
import pwd
import stat
from pathlib import Path

from ropewalk.cluster.errors import ConfigError


def refuse_foreign(folder: Path) -> None:
    """Raise ConfigError if anybody else may change what lies in a folder, or put another in its place; it need not be there."""
    if (link := folder.absolute()).is_symlink() and link.lstat().st_uid not in {0, os.geteuid()}:
        raise ConfigError(f"{folder} is a link that another user has made; name a folder of your own")
    real = folder.resolve()
    if real.exists() and real.stat().st_uid != os.geteuid():
        raise ConfigError(f"{folder} belongs to {_name_of(real.stat().st_uid)}; name a folder of your own")
    for place in (real, *real.parents):
        if not place.exists():
            continue
        status = place.stat()
        others_write = status.st_mode & 0o022 and (place == real or not status.st_mode & stat.S_ISVTX)
        if others_write or status.st_uid not in {0, os.geteuid()}:
            raise ConfigError(f"{place} may be changed by others than you; name a folder that lies in one of your own")


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"

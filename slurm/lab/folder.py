"""Checks that only the current user can change a test cluster's folder, because its daemons, possibly root's, run files of it."""

import os
import pwd
import stat
from pathlib import Path

from ropewalk.cluster.errors import ConfigError


def refuse_foreign(folder: Path) -> None:
    """Raise ConfigError if another user can change files in a folder or replace it. The folder need not exist."""
    if (link := folder.absolute()).is_symlink() and link.lstat().st_uid not in {0, os.geteuid()}:
        raise ConfigError(f"{folder} is a link that another user created; name a folder of your own")
    real = folder.resolve()
    if real.exists() and real.stat().st_uid != os.geteuid():
        raise ConfigError(f"{folder} belongs to {_name_of(real.stat().st_uid)}; name a folder of your own")
    for path in (real, *real.parents):
        if not path.exists():
            continue
        status = path.stat()
        others_write = status.st_mode & 0o022 and (path == real or not status.st_mode & stat.S_ISVTX)
        if others_write or status.st_uid not in {0, os.geteuid()}:
            raise ConfigError(f"{path} can be changed by other users; name a folder inside one of your own")


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"

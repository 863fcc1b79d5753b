"""Storage of secrets in private files of the user's home, and the rules for names and values."""

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from ropewalk.cluster.errors import ConfigError

LEAST_LETTERS = 8  # a shorter value would be masked in words that happen to contain it
MOST_BYTES = 1 << 16  # Linux limits a variable to 128 KiB
FOLDER = ".config/ropewalk/secrets"  # in the user's home
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("ROPEWALK_", "SLURM_", "KUBERNETES_")


def check_name(name: str) -> str:
    """Return a valid name of a secret. Raises ValueError; the message has nothing of `name` that may be a value."""
    if not _NAME.fullmatch(name):
        raise ValueError("the name of a secret is that of a variable: letters, digits and _, and no digit at the beginning")
    if name.startswith(_OURS):
        raise ValueError(f"{name}: names of secrets do not begin with {', '.join(_OURS)}")
    return name


def check_value(value: str) -> str:
    """Return a valid value without line ends after it. Raises ConfigError."""
    value = value.rstrip("\r\n")
    if not value:
        raise ConfigError("nothing was read, so no value is set; `ropewalk secret set NAME < FILE` reads it from a file")
    if len(value) < LEAST_LETTERS:
        raise ConfigError(f"the value has less than {LEAST_LETTERS} characters, so it could not be masked in the output of runs")
    if "\0" in value or len(value.encode()) > MOST_BYTES:
        raise ConfigError(f"the value has a NUL character or more than {MOST_BYTES >> 10} KiB, which no variable can hold")
    return value


def read_value(stream: BinaryIO) -> str:
    """Read a value that is piped in. Raises ConfigError."""
    try:
        return check_value(stream.read(2 * MOST_BYTES).decode())
    except UnicodeDecodeError:
        raise ConfigError("the value is not text in UTF-8; encode it first, for example with base64") from None


class SecretStore(Protocol):
    """The secrets of a user on one cluster. They are written and counted, and only read where a run needs them."""

    @property
    def location(self) -> str:
        """The place of the store, for people."""
        ...

    def names(self) -> Sequence[str]:
        """Return the names of all secrets, sorted. Raises BackendError."""
        ...

    def set(self, name: str, value: str) -> None:
        """Store a secret or replace its value. Raises BackendError, OSError."""
        ...

    def remove(self, name: str) -> bool:
        """Remove a secret; return False if there was none. Raises BackendError, OSError."""
        ...


class FileStore:
    """A store of private files, one per secret, in a folder that the nodes see too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_cluster(cls, cluster: str) -> "FileStore":
        """Return this user's store for a cluster. Raises ConfigError for a cluster whose name is not that of a folder."""
        if cluster in ("", ".", "..") or "/" in cluster:
            raise ConfigError(f"cluster {cluster!r}: its secrets are in a folder of its name, which cannot be; rename it")
        return cls(Path.home() / FOLDER / cluster)

    @property
    def location(self) -> str:
        return str(self.folder)

    def names(self) -> Sequence[str]:
        with suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self.folder) if _NAME.fullmatch(entry.name))
        return []

    def set(self, name: str, value: str) -> None:
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        temporary = self.folder / f".{name}.{secrets.token_hex(4)}"
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
                stream.write(check_value(value))
            temporary.replace(self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> bool:
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def read(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the values of these secrets; those that are not set are left out."""
        values = {}
        for name in names:
            with suppress(FileNotFoundError):
                values[name] = (self.folder / name).read_text(encoding="utf-8").rstrip("\r\n")
        return values

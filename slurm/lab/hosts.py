"""Adds and removes the lines of /etc/hosts with which a test cluster's node names resolve; only root can."""

import fcntl
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

HOSTS = Path("/etc/hosts")


def can_resolve(hosts: Mapping[str, str]) -> bool:
    """Return True if the names resolve to their addresses, or would after `add`."""
    different = [address for name, expected in hosts.items() if (address := _resolve(name)) != expected]
    return not any(different) and (not different or os.access(HOSTS, os.W_OK))


def add(hosts: Mapping[str, str], folder: Path) -> None:
    """Add lines for the names that do not resolve."""
    lines = [f"{address} {name} {_note(folder)}\n" for name, address in hosts.items() if _resolve(name) != address]
    if lines:
        _edit(lambda text: text.rstrip("\n") + "\n" + "".join(lines))


def remove(folder: Path) -> None:
    """Remove the lines of the lab in `folder`."""

    def others(text: str) -> str:
        return "".join(line for line in text.splitlines(keepends=True) if not line.rstrip().endswith(_note(folder)))

    text = HOSTS.read_text()
    if others(text) != text:
        _edit(others)


def _edit(change: Callable[[str], str]) -> None:
    """Rewrite /etc/hosts in place, because in a container it is a mount that cannot be replaced by a rename.

    A lock serializes labs. The other lines are present at every moment, since any process may resolve localhost.
    """
    with HOSTS.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        text = change(stream.read())
        stream.seek(0)
        stream.write(text)
        stream.truncate()


def _note(folder: Path) -> str:
    return f"# ropewalk lab {folder}"


def _resolve(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""

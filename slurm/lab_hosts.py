"""The lines of /etc/hosts that make a test cluster's node names resolve: added and removed by root only."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

HOSTS = Path("/etc/hosts")


def can_resolve(hosts: Mapping[str, str]) -> bool:
    """Whether names resolve to their addresses, or `add` would make them."""
    unlike = [found for name, address in hosts.items() if (found := _resolve(name)) != address]
    return not any(unlike) and (not unlike or os.access(HOSTS, os.W_OK))


def add(hosts: Mapping[str, str], folder: Path) -> None:
    """Add those names that do not resolve."""
    lines = [f"{address} {name} {_note(folder)}\n" for name, address in hosts.items() if _resolve(name) != address]
    if lines:
        _write(HOSTS.read_text().rstrip("\n") + "\n" + "".join(lines))


def remove(folder: Path) -> None:
    """Take out the lines of the lab in `folder`."""
    text = HOSTS.read_text()
    kept = "".join(line for line in text.splitlines(keepends=True) if not line.rstrip().endswith(_note(folder)))
    if kept != text:
        _write(kept)


def _write(text: str) -> None:
    HOSTS.write_text(text)  # in place: in a container it is a mount, which nothing can be renamed onto


def _note(folder: Path) -> str:
    return f"# ropewalk lab {folder}"


def _resolve(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""

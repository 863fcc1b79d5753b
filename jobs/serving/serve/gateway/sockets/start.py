"""Whether a keeper runs, and where: what those who start one ask."""

import json
import os
from pathlib import Path
from typing import NamedTuple


class Address(NamedTuple):
    """Where a gateway is reached, and the process of its keeper."""

    address: str
    port: int
    pid: int


def running(address_file: Path) -> Address | None:
    """The keeper that wrote this file, if it still runs; None otherwise."""
    try:
        told = json.loads(address_file.read_bytes())
        found = Address(str(told["address"]), int(told["port"]), int(told["pid"]))
        words = Path(f"/proc/{found.pid}/cmdline").read_bytes().split(b"\0")
        os.kill(found.pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if b"ropewalk.jobs.serving.serve.gateway" in words else None

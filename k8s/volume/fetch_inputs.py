"""Fetches models and data from the Hugging Face hub into a store on the volume. Runs in a pod, for a machine without the volume.

Usage: python -m ropewalk.k8s.volume.fetch_inputs STORE, with a JSON request on the standard input:
  {"wanted": [[pinned location, need], ...], "endpoint": address of the hub, "token": a token or null}
After signalling that it reads (see `exec_stdin`), it answers with lines of JSON: {"show": [label, bytes, total bytes]},
{"notify": text}, and at the end {"end": true}, with "error" and "mistake" if it failed.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.hub import progress
from ropewalk.k8s.api.exec_stdin import ready_stdin

REPORT_SECONDS = 0.5


class _Reports:
    """Writes progress to the standard output, at most twice a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def show(self, label: str, present_bytes: int, total_bytes: int) -> None:
        if present_bytes >= total_bytes or time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_SECONDS
            _write({"show": [label, present_bytes, total_bytes]})

    @staticmethod
    def notify(message: str) -> None:
        _write({"notify": message})


def main() -> None:
    """Fetch what the request on the standard input names, into the store that the command line names."""
    with ready_stdin() as stream:
        request = json.loads(stream.readline())
    os.environ["HF_ENDPOINT"] = request["endpoint"]  # read when huggingface_hub is imported, below
    if request["token"]:
        os.environ["HF_TOKEN"] = request["token"]
    os.environ.pop("HF_HUB_OFFLINE", None)
    reports = _Reports()
    progress.show, progress.notify = reports.show, reports.notify
    try:
        _fetch(request["wanted"], Path(sys.argv[1]))
    except RopewalkError as error:
        _write({"end": True, "error": str(error), "mistake": isinstance(error, ConfigError)})
    else:
        _write({"end": True})


def _fetch(wanted: list[list[Any]], root: Path) -> None:
    from ropewalk.cluster.hub.lookup import look_up  # noqa: PLC0415 - after the address of the hub is set
    from ropewalk.cluster.hub.store import Store  # noqa: PLC0415

    store = Store(root)
    for location, need in wanted:
        version = look_up(location, need, location, store)
        version.fetch(store)


def _write(line: dict[str, Any]) -> None:
    sys.stdout.write(f"{json.dumps(line)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

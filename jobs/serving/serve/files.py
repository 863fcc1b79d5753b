"""Files of a serving run: for its own processes, for `show`, and for other programs."""

import os
import tempfile
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json


class ServingFiles:
    """Files in the run's directory, readable by everyone."""

    def __init__(self, run: RunDir) -> None:
        self.folder = run.path / "serving"
        self.routes = self.folder / "routes.json"  # copy of the gateway's routes
        self.state = self.folder / "state.json"  # ServingState: versions and their phases
        self.load = self.folder / "load.json"  # running requests and counts, some seconds old
        self.address = self.folder / "address.json"  # {address, port, node, attempt}
        self.successor = self.folder / "successor.json"  # {run}: the successor that takes over
        self.replicas = self.folder / "replicas"  # one folder per application with one file per replica
        self.models = self.folder / "models"  # exported checkpoints

    def make(self) -> None:
        for folder in (self.folder, self.replicas, self.models):
            folder.mkdir(exist_ok=True)


class LocalFiles:
    """Files on the first node's own disk, which change and are read often."""

    def __init__(self, folder: Path | None = None) -> None:
        # the agent's temporary folder, removed after the attempt; gettempdir() leaves it for another one while its disk is full
        self.folder = folder or Path(os.environ.get("TMPDIR") or tempfile.gettempdir()) / "serve"
        self.routes = self.folder / "routes.json"
        self.load = self.folder / "load.json"
        self.settings = self.folder / "gateway.json"
        self.closing = self.folder / "closing"  # exists once new requests are refused
        self.failure = self.folder / "failure.json"  # {error}: fatal error of the controller

    def make(self) -> None:
        self.folder.mkdir(mode=0o700, exist_ok=True)


def read_load(path: Path) -> dict[str, Any]:
    """Read the gateway's load; empty before it is first written."""
    try:
        load = read_json(path)
    except ValueError:
        return {}
    return load if isinstance(load, dict) else {}


def open_requests(load: dict[str, Any]) -> int:
    """Count running and queued requests."""
    counts = (load.get("versions") or {}).values()
    return sum(int(version.get("running", 0)) + int(version.get("queued", 0)) for version in counts)

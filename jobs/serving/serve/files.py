"""The files of a serving run: what its parts tell each other, and what `show` and other programs read."""

import tempfile
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json


class ServingFiles:
    """In the run's directory, for everybody; and on the first node's own disk, for the gateway."""

    def __init__(self, run: RunDir) -> None:
        self.folder = run.path / "serving"
        self.routes = self.folder / "routes.json"  # which replicas answer for which version, as the gateway has it
        self.state = self.folder / "state.json"  # versions and their phases, as the controller decided
        self.load = self.folder / "load.json"  # requests under way and counts, some seconds old
        self.address = self.folder / "address.json"  # {address, host, port, attempt, node}
        self.successor = self.folder / "successor.json"  # {run}: who takes over from this run
        self.replicas = self.folder / "replicas"  # a folder an application, in it a file a replica
        self.models = self.folder / "models"  # checkpoints as Hugging Face directories

    def make(self) -> None:
        """Make the folders."""
        for folder in (self.folder, self.replicas, self.models):
            folder.mkdir(exist_ok=True)


class LocalFiles:
    """On the first node's own disk: files that change often, and are read as often."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir()) / "serve"  # of the agent: it goes with the attempt
        self.routes = self.folder / "routes.json"
        self.load = self.folder / "load.json"
        self.address = self.folder / "address.json"
        self.settings = self.folder / "gateway.json"
        self.closing = self.folder / "closing"  # it exists once new requests are refused
        self.failure = self.folder / "failure.json"  # {error}: why the controller gave up

    def make(self) -> None:
        """Make the folder."""
        self.folder.mkdir(mode=0o700, exist_ok=True)


def read_load(path: Path) -> dict[str, Any]:
    """What the gateway last said of its load; empty before it has said anything."""
    try:
        found = read_json(path)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def open_requests(load: dict[str, Any]) -> int:
    """Requests under way or in a queue."""
    counts = (load.get("versions") or {}).values()
    return sum(int(each.get("running", 0)) + int(each.get("queued", 0)) for each in counts)

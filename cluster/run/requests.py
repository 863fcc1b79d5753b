"""File of users' requests to a running run, which the run's supervisor reads."""

from pathlib import Path
from typing import Any

from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.files import read_json, write_json


class Requests:
    """Key-value file of requests. It is created before the run starts, so that NFS clients see changes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, key: str) -> Any:
        return (read_json(self.path) or {}).get(key)

    def put(self, key: str, value: Any) -> None:
        """Set the requested value of `key`; None withdraws the request."""
        requests = {**(read_json(self.path) or {}), key: value}
        write_json(self.path, {name: value for name, value in requests.items() if value is not None})

    def make(self) -> None:
        """Create the empty file, since an NFS client caches for a minute that a file is missing."""
        read_afresh(self.path)

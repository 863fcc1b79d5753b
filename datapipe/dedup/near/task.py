"""One task of the search for near-duplicates, wherever it runs."""

from typing import Any

import orjson

from cluster.storage import StoragePath
from datapipe.dedup.near.compare import Gather, Verify
from datapipe.dedup.near.connect import Match, Route, Star
from datapipe.dedup.near.places import FOLDER
from datapipe.inputs.streams import naming_full_disk

NearTask = Match | Star | Route | Gather | Verify


def done_name(name: str) -> str:
    """The file that says that a task is done, below the work area, with its result."""
    return f"{FOLDER}/done/{name}.json"


def run_near(task: NearTask, work: StoragePath) -> dict[str, Any]:
    """Do a task and commit its result."""
    with naming_full_disk(work.url):
        result = task.run(work)
        work.write(done_name(task.name), orjson.dumps(result))
    return result

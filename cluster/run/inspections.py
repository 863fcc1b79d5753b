"""Requests to look into a live run, and the folder in which agents and ranks answer each of them."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.names import INSPECTIONS

Kind = Literal["stacks", "profile", "memory"]

_KEY = "inspections"  # among the requests of users: the newest ones
_MOST_REQUESTS = 8  # so that two people who ask at the same time both get an answer


@dataclass(frozen=True, kw_only=True)
class InspectionRequest:
    """A request of a user to look into an attempt."""

    number: int  # counts within the attempt
    kind: Kind
    attempt: int
    time: float  # seconds since the epoch
    steps: int = 0  # to profile

    def folder(self, run: RunDir) -> Path:
        """Folder of the answers: `node-0.json` by agents, `rank-0.json` and `rank-0.trace.json.gz` by ranks."""
        return run.attempt_dir(self.attempt) / INSPECTIONS / f"{self.number:04d}"


def request_inspection(run: RunDir, kind: Kind, attempt: int, steps: int = 0) -> InspectionRequest:
    """Ask the attempt's agents for stacks, or its ranks for a profile of the next steps or their memory."""
    earlier = list(run.requests.get(_KEY) or [])
    number = max((entry["number"] for entry in earlier if entry["attempt"] == attempt), default=0) + 1
    while True:
        request = InspectionRequest(number=number, kind=kind, attempt=attempt, time=time.time(), steps=steps)
        try:
            request.folder(run).mkdir(parents=True)
        except FileExistsError:  # somebody else asks at this moment
            number += 1
        else:
            break
    run.requests.put(_KEY, [*earlier, asdict(request)][-_MOST_REQUESTS:])
    return request


def read_requests(run: RunDir, attempt: int) -> Iterator[InspectionRequest]:
    """Yield the newest requests to an attempt, oldest first."""
    for entry in run.requests.get(_KEY) or ():
        if entry["attempt"] == attempt:
            yield InspectionRequest(**entry)


def rank_request_file(stop_flag: Path) -> Path:
    """Return the file on the node's local disk in which the agent of rank 0 passes a request on to it."""
    return stop_flag.with_name("inspection")

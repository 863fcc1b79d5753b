"""Submissions that a dry run has checked, each under a token that is good once, for ten minutes."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ropewalk.cluster.backends.profiles import load_profile
from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir, runs_root
from ropewalk.jobs.runs.submit.code_files import select_code
from ropewalk.jobs.runs.submit.records import submission_record, wanted_project
from ropewalk.jobs.runs.submit.snapshot import code_state, project_of
from ropewalk.jobs.runs.submit.submit import submit

LIFETIME_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Approval:
    """A submission as it was checked."""

    job: str
    config: JobConfig
    cluster: str
    state: str  # hash of the code and of the cluster's profile
    deadline: float  # of the monotonic clock


class Approvals:
    """The submissions that wait for their token to come back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, Approval] = {}

    def add(self, job: str, config: JobConfig, cluster: str) -> str:
        """Keep a submission that was checked, and return its token."""
        token, deadline = secrets.token_urlsafe(16), self._clock() + LIFETIME_SECONDS
        state = _state_of(job, config, cluster)
        self._waiting[token] = Approval(job=job, config=config, cluster=cluster, state=state, deadline=deadline)
        return token

    def submit(self, token: str) -> RunDir:
        """Submit what a token stands for, once. Raises RopewalkError."""
        approval = self._waiting.pop(token, None)
        if approval is None or self._clock() > approval.deadline:
            raise ConfigError("this token is unknown, used or older than ten minutes; plan the run again for a new one")
        if _state_of(approval.job, approval.config, approval.cluster) != approval.state:
            raise ConfigError("the code or the cluster's profile has changed since the plan; plan the run again for a new token")
        return submit(approval.job, approval.config, approval.cluster)


def _state_of(job: str, config: JobConfig, cluster: str) -> str:
    """Return a hash of the code that a submission would use, and of its cluster's profile."""
    state = {"code": submission_record(())["code"], "profile": dict(load_profile(cluster).options)}
    wanted = wanted_project(job, config)
    if wanted is not None:
        directory, code = wanted
        tree, _ = project_of(Path(directory), Path(code.root) if code.root else None)
        files = select_code(tree, [runs_root().resolve()], code.exclude).files or []
        state["project"] = [code_state(tree), *(_stamp(tree / name) for name in files)]
    return hashlib.sha256(json.dumps(state, default=str, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> tuple[str, int, int]:
    """Return what changes with a file, also with one that git does not track."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns

"""Hold a node for ssh sessions until the time limit, or until the run is cancelled."""

import os
import secrets
import shutil
import sys
import time
from pathlib import Path

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.packages.use import ENTERED_VARIABLE
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.jobs.orchestration.dev.config import DevConfig
from ropewalk.jobs.orchestration.dev.server import SessionServer, socket_name
from ropewalk.jobs.runs.program.environment import project_folder, variables_of

POLL_SECONDS = 0.5
LIMIT_SECONDS = 300.0  # a stop in the last minutes before the time limit is the limit: the job began before its agent
WORK = "work"  # in the run's directory: the copy of the code that sessions may change


def main(context: JobContext) -> dict[str, object]:
    """Take sessions until the run has to stop. Raises StopRequested after a preemption, so that the run is requeued."""
    config, began = context.config(DevConfig), time.time()
    folder, environment = project_folder(context.run, config.directory), {**os.environ, **variables_of(context, "once")}
    if ENTERED_VARIABLE not in environment:
        environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath)))
    if context.run.record.get("project"):
        code, work = working_copy(context.run)
        folder = folder.replace(code, work)
        environment = {name: value.replace(code, work) for name, value in environment.items()}
    server = SessionServer(socket_name(context.run.id, context.attempt), config.authorized, Path(folder), environment)
    try:
        while not context.stop_requested():
            time.sleep(POLL_SECONDS)
    finally:
        server.close()
    resources = context.run.resources(context.attempt)
    left = (resources.time_limit_minutes or float("inf")) * 60 - resources.grace_seconds - (time.time() - began)
    if context.run.cancel_requested or left > LIMIT_SECONDS:
        raise StopRequested("the sessions have ended")
    return {}


def working_copy(run: RunDir) -> tuple[str, str]:
    """Return the copy of the code that was submitted, and the copy of it that belongs to this run alone."""
    work = run.path.absolute() / WORK
    code = run.path.absolute().parent / CODE_FOLDER / str(run.record["project"]["snapshot"])
    if not work.is_dir():
        temporary = work.with_name(f".{WORK}.{secrets.token_hex(4)}")
        shutil.copytree(code, temporary, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        temporary.rename(work)
    return str(code), str(work)

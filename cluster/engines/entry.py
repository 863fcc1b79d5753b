"""Call of a job's entry, with its result or error turned into an exit code; used by the processes of every engine.

Usage, also under torchrun: python -m ropewalk.cluster.engines.entry RUN_DIR --attempt N
"""

import argparse
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ropewalk.cluster.engines.crashes import is_lost_peer
from ropewalk.cluster.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_LOST_PEER,
    EXIT_NEVER_RETRY,
    EXIT_REQUEUE,
    FormAnewError,
    GateError,
    RopewalkError,
    StaleAttemptError,
    StopRequested,
)
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.run import names
from ropewalk.cluster.run.context import STOP_VARIABLE, JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.run.node_ledger import machine_name
from ropewalk.cluster.run.project import add_project_path
from ropewalk.cluster.run.spare import SpareRank, wait_for_group
from ropewalk.cluster.secrets.variables import RunSecrets

log = logging.getLogger("ropewalk.cluster.engines.entry")  # also as __main__


def load_entry(name: str) -> Callable[..., Any]:
    """Import the function `module:attribute`."""
    module, _, attribute = name.partition(":")
    entry: Callable[..., Any] = getattr(import_module(module), attribute)
    return entry


def run_entry(context: JobContext) -> int | None:
    """Call the run's entry and return the exit code. Results and errors are written to the attempt's folder.

    Returns None if the group broke and this process stays for the next one: the entry has left nothing behind then.
    """
    folder, started = context.run.attempt_dir(context.attempt), time.monotonic()
    try:
        if context.rank == 0:
            context.fence.claim()
        results = load_entry(context.run.record["entry"])(context)
        if context.rank == 0:
            write_json(folder / names.RESULT, RunSecrets.inherited().masked(results or {}))
        return EXIT_DONE
    except StopRequested as stop:
        log.info("stopped: %s", stop)
        return EXIT_REQUEUE
    except SpareRank as spare:
        code = wait_for_group(context, spare)
        return None if code == EXIT_LOST_PEER and context.stays else code
    except StaleAttemptError as error:  # a successor owns the attempt's files: write no error record
        log.warning("%s", error)
        return EXIT_LOST_PEER
    except Exception as error:  # every error becomes a record and an exit code
        code = exit_code_of(error)
        if code == EXIT_LOST_PEER and context.stays and not isinstance(error, FormAnewError):
            log.info("group %d has ended: %s", context.group, str(error).partition("\n")[0])
            return None
        if isinstance(error, GateError) and context.rank == 0:
            write_json(folder / names.RESULT, RunSecrets.inherited().masked(error.results))
        is_traced = error.logs_traceback if isinstance(error, RopewalkError) else True
        log.error("%s: %s", type(error).__name__, error, exc_info=code != EXIT_NEVER_RETRY and is_traced)
        origin = {"who": f"rank {context.rank}", "rank": context.rank, "group": context.group}
        origin |= {"seconds": time.monotonic() - started, "progress": _progress(context.run)}
        write_error(folder, f"group-{context.group}-rank-{context.rank}", error, code, **origin)
        return code


def _progress(run: RunDir) -> list[Any]:
    """Return the stage of the run and the work done in it, to compare the ends of two attempts."""
    report = read_json(run.progress) or {}
    return [report.get("stage"), report.get("done")]


def write_error(folder: Path, name: str, error: Exception, code: int, **origin: Any) -> None:
    """Record the error that ends a process, inside `except`. `origin` identifies the process; `who` is its name for people."""
    mask = RunSecrets.inherited().mask
    record = {
        **origin,
        "time": time.time(),
        "host": machine_name(),
        "exit_code": code,
        "type": type(error).__name__,
        "message": mask.text(str(error))[:4000],
        "traceback": mask.text(traceback.format_exc())[-8000:],
    }
    write_json(folder / names.ERRORS / f"{name}.json", record)
    if code == EXIT_NEVER_RETRY:
        write_json(folder / names.FATAL, record)  # makes every agent of the attempt exit


def exit_code_of(error: Exception) -> int:
    """Return 42 for an error that a retry cannot fix, 75 for a lost peer or a group to be formed anew, else 1."""
    if isinstance(error, FormAnewError) or is_lost_peer(error):
        return EXIT_LOST_PEER
    if isinstance(error, RopewalkError):
        return EXIT_FAILED if error.retryable else EXIT_NEVER_RETRY
    return EXIT_FAILED


def die_with_parent(parent: int | None = None) -> None:
    """End this process when its parent, or the starter of its fork server, is gone: an orphaned rank would occupy a GPU."""
    parent = parent or os.getppid()
    starter = multiprocessing.parent_process()

    def watch() -> None:
        while os.getppid() == parent and (starter is None or starter.is_alive()):
            time.sleep(0.3)
        os._exit(EXIT_LOST_PEER)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> None:
    """Run an entry in this process: under torchrun, in the `process` engine, or as a Ray driver."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--parent", type=int, help="pid of the process with which this one ends")
    arguments = parser.parse_args()
    rank = int(os.environ.get("RANK", "0"))
    configure_logging(f"rank {rank}")
    flag = os.environ.get(STOP_VARIABLE)
    context = JobContext(
        run=RunDir(arguments.run_dir),
        attempt=arguments.attempt,
        rank=rank,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        stop_flag=Path(flag) if flag else None,
    )
    die_with_parent(arguments.parent)
    add_project_path()
    code = run_entry(context)
    assert code is not None, "without an agent no process stays"
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's shutdown may hang in a broken process group


if __name__ == "__main__":
    main()

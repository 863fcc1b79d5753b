"""The local scheduler: one detached process a run, which waits for the runs it depends on and then carries it.

Usage: python -m cluster.backends.local.supervisor_main RUN_DIR
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from cluster.backends.local.nodes import LocalAllocation
from cluster.process.forking import import_modules, preload_modules
from cluster.process.output import configure_logging
from cluster.process.signals import STOP_SIGNALS, SignalFlag
from cluster.run.directory import RunDir
from cluster.run.names import LOCAL_REQUEST
from cluster.spec import Outcome, RunState
from cluster.supervise.supervisor import Supervisor


def supervise(run: RunDir) -> None:
    """Supervise the run's attempt that `local.json` names, once the runs that it waits for have succeeded."""
    request: dict[str, Any] = json.loads((run.path / LOCAL_REQUEST).read_bytes())
    number: int = request["attempt"]  # opened by whoever submitted, so that a resumed run has no outcome
    run.describe_attempt(number, handle=f"local:{os.getpid()}")
    stop = SignalFlag()  # whoever runs this machine wants the run to stop
    allocation = LocalAllocation(run, run.resources(number), stop)

    def leave(*_: object) -> None:
        allocation.leaving = True
        stop.set()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGUSR2, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # not `install_stop_handler`, which tells them not apart
    try:
        obstacle = await_others(run, request["after"], allocation)
        if obstacle:
            outcome = Outcome(state=RunState.CANCELLED, exit_code=0, cause=obstacle, ended=time.time())
            run.write_outcome(number, outcome)
        else:
            import_modules(preload_modules(run))
            Supervisor(run, allocation, sys.executable).supervise(number)
    finally:
        allocation.close()


def await_others(run: RunDir, others: list[str], allocation: LocalAllocation) -> str:
    """Wait until the runs it depends on have succeeded; why it never starts, or nothing."""
    for word in others:
        other = RunDir(run.path.parent / word)
        while (outcome := other.last_outcome()) is None or not outcome.state.final:
            if run.cancel_requested or allocation.leaving:
                return "cancelled before it started"
            time.sleep(0.5)
        if outcome.state is not RunState.SUCCEEDED:
            return f"the run it waits for, {word}, ended as {outcome.state}"
    return ""


def main() -> None:
    """Supervise one run, detached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    configure_logging("supervisor")
    os.environ["PYTHONUNBUFFERED"] = "1"
    supervise(run)


if __name__ == "__main__":
    main()

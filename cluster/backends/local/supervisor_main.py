"""The supervisor process of a local run: waits for the run's dependencies, then runs its attempts.

Usage: python -m ropewalk.cluster.backends.local.supervisor_main RUN_DIR
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from ropewalk.cluster.backends.local.nodes import LocalAllocation
from ropewalk.cluster.backends.submission import broken_dependencies, dependencies, is_over, newest_submission, unstarted_outcome
from ropewalk.cluster.process.forking import import_modules, preload_modules
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.signals import STOP_SIGNALS, SignalFlag
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.cluster.supervise.supervisor import Supervisor


def supervise(run: RunDir) -> None:
    """Run the attempts of the run's newest submission; the submission has opened the first one."""
    number, _ = newest_submission(run)
    run.describe_attempt(number, handle=f"local:{os.getpid()}")
    stop = SignalFlag()  # set by a signal: the machine's owner wants the run to stop
    allocation = LocalAllocation(run, run.resources(number), stop)

    def leave(*_: object) -> None:
        allocation.leaving = True
        stop.set()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGUSR2, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # `install_stop_handler` would not distinguish them
    try:
        if outcome := await_dependencies(run, allocation):
            run.write_outcome(number, outcome)
        else:
            import_modules(preload_modules(run))
            Supervisor(run, allocation, sys.executable).supervise(number)
    finally:
        allocation.close()


def await_dependencies(run: RunDir, allocation: LocalAllocation) -> Outcome | None:
    """Wait until the run's dependencies are met. Return None, or the run's outcome if it cannot start."""
    others = dependencies(run)
    while not all(is_over(other.run) for other in others) and not broken_dependencies(others):
        if run.cancel_requested or allocation.leaving:
            return Outcome(state=RunState.CANCELLED, exit_code=0, cause="cancelled before it started", ended=time.time())
        time.sleep(0.5)
    broken = broken_dependencies(others)
    return unstarted_outcome(run, broken) if broken else None


def main() -> None:
    """Supervise the run in the directory given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    configure_logging("supervisor")
    os.environ["PYTHONUNBUFFERED"] = "1"
    supervise(run)


if __name__ == "__main__":
    main()

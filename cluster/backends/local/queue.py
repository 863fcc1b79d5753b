"""The queue process of a local submission of many runs: starts their supervisors, a few at a time.

Usage: python -m ropewalk.cluster.backends.local.queue DIRECTORY_OF_THE_FIRST_RUN
"""

import argparse
import logging
import os
import time
from pathlib import Path

from ropewalk.cluster.backends.local.processes import record_supervisor, supervisor_command
from ropewalk.cluster.errors import EXIT_FAILED
from ropewalk.cluster.process.forking import Forked, fork_program, import_modules, preload_modules
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.signals import SignalFlag, install_stop_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.run.names import QUEUE
from ropewalk.cluster.spec import Outcome, RunState

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2


class Queue:
    """Runs of one submission, in order. If this process dies, active runs go on, and waiting runs must be resumed."""

    def __init__(self, head: RunDir) -> None:
        request = read_json(head.path / QUEUE) or {}
        self.at_once: int = request["at_once"]
        self.waiting = [RunDir(head.path.parent / run_id) for run_id in request["runs"]]
        self.running: list[Forked] = []
        self.leave = SignalFlag()

    def serve(self) -> None:
        """Start the runs in order, and return when the last supervisor has exited."""
        install_stop_handler(self.leave.set)
        while (self.waiting or self.running) and not self.leave.is_set():
            self.running = [process for process in self.running if process.poll() is None]
            self._drop_cancelled()
            while self.waiting and len(self.running) < self.at_once:
                self._start(self.waiting.pop(0))
            self.leave.wait(POLL_SECONDS)
        for process in self.running:  # supervisors have their runs save and exit
            process.terminate()
        for process in self.running:
            process.wait()

    def _drop_cancelled(self) -> None:
        for run in [run for run in self.waiting if run.cancel_requested]:
            self._record_outcome(run, RunState.CANCELLED, 0, "cancelled before it started")
            self.waiting.remove(run)

    def _start(self, run: RunDir) -> None:
        if not (attempts := run.attempts()):
            return log.warning("%s was deleted while it waited", run.id)
        try:
            run.make_folders(attempts[-1])
            import_modules(preload_modules(run))  # once for all runs
            process = fork_program(supervisor_command(run), os.environ, run.path / "supervisor.log")  # outlives this process
        except OSError as error:
            log.exception("%s: the supervisor could not be started", run.id)
            return self._record_outcome(run, RunState.FAILED, EXIT_FAILED, f"its supervisor could not be started: {error}")
        record_supervisor(run, process.pid)
        self.running.append(process)
        return None

    def _record_outcome(self, run: RunDir, state: RunState, code: int, cause: str) -> None:
        run.write_outcome(run.attempts()[-1], Outcome(state=state, exit_code=code, cause=cause, ended=time.time()))


def main() -> None:
    """Serve the queue of a submission, given the directory of its first run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    head = RunDir(parser.parse_args().run_dir)
    configure_logging("queue")
    Queue(head).serve()


if __name__ == "__main__":
    main()

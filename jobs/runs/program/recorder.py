"""What a program tells its run, written by a thread: no step of the program waits for a file system that others use too."""

import atexit
import os
import sys
from collections.abc import Mapping
from typing import Any

from ropewalk.cluster.run.background import BackgroundWriter
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.results.metrics import MetricLog, metric_line

MOST_WAITING = 100_000  # lines, some ten megabytes: what a program logs while the file system stands still for minutes


_of_this_process: "Recorder | None" = None


def recorder(context: JobContext) -> "Recorder":
    """The recorder of this process, which is part of one run; a fork has no thread, and gets a recorder of its own."""
    global _of_this_process  # noqa: PLW0603
    if _of_this_process is None or _of_this_process.pid != os.getpid():
        _of_this_process = Recorder(context)
    return _of_this_process


def flush() -> None:
    """Write what this process has told, if it has told anything: for whoever ends it without the interpreter's own end."""
    if _of_this_process is not None:
        _of_this_process.last()


class Recorder:
    """Metrics and progress of one process. They are on their way within a quarter of a second, and written before it exits;
    a process that is killed loses what it has told in that time.

    The first error of a write (a full disk, an attempt that has a successor) is raised by the next call.
    """

    def __init__(self, context: JobContext) -> None:
        self._context, self._log = context, None  # type: JobContext, MetricLog | None
        self._writer = BackgroundWriter(context.fence.check, most_waiting=MOST_WAITING)
        self.pid = os.getpid()
        atexit.register(self.last)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Have a line of metrics written, of this moment."""
        self._writer.put(self._write_metrics, metric_line(self._context.attempt, step, values))

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """Have the progress written; of several that wait the newest is."""
        self._writer.put(self._write_progress, {"stage": "train", "done": done, "total": total, "unit": unit})

    def flush(self) -> None:
        """Wait until all that was told is written. Raises the first error of a write."""
        self._writer.flush()

    def last(self) -> None:
        """Write what is left; an error is said, and not raised: the program is over, and nobody can answer."""
        if os.getpid() != self.pid:
            return
        try:
            self.flush()
        except Exception as error:
            sys.stderr.write(f"ropewalk: the last metrics could not be written: {error}\n")

    # --- in the thread

    def _write_metrics(self, lines: list[dict[str, Any]]) -> None:
        self._log = self._log or MetricLog(self._context)
        self._log.write(lines)

    def _write_progress(self, reports: list[dict[str, Any]]) -> None:
        write_json(self._context.run.progress, reports[-1], durable=False)

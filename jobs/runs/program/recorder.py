"""Background writer of a program's metrics and progress, so that its steps do not wait for a shared file system."""

import atexit
import os
import sys
from collections.abc import Mapping
from typing import Any

from ropewalk.cluster.run.background import BackgroundWriter
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.results.metrics import MetricLog, metric_line

MOST_WAITING = 100_000  # lines, about 10 MB: enough for minutes in which the file system hangs


_of_this_process: "Recorder | None" = None


def recorder(context: JobContext) -> "Recorder":
    """Return the recorder of this process. A forked child gets a new one, since it does not inherit the thread."""
    global _of_this_process  # noqa: PLW0603
    if _of_this_process is None or _of_this_process.pid != os.getpid():
        _of_this_process = Recorder(context)
    return _of_this_process


def flush() -> None:
    """Write everything that this process has recorded. Call it before `os._exit`, which skips exit handlers."""
    if _of_this_process is not None:
        _of_this_process.close()


class Recorder:
    """Writes metrics and progress of one process within a quarter of a second, and at its exit.

    A process that is killed loses what it recorded in that time. The first error of a write (a full disk, an attempt with a
    successor) is raised by the next call.
    """

    def __init__(self, context: JobContext) -> None:
        self._context, self._log = context, None  # type: JobContext, MetricLog | None
        self._writer = BackgroundWriter(context.fence.check, most_waiting=MOST_WAITING)
        self.pid = os.getpid()
        atexit.register(self.close)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record a line of metrics with the current time."""
        self._writer.put(self._write_metrics, metric_line(self._context.attempt, step, values))

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """Record the progress; only the newest of several waiting reports is written."""
        self._writer.put(self._write_progress, {"stage": "train", "done": done, "total": total, "unit": unit})

    def flush(self) -> None:
        """Wait until everything is written. Raises the first error of a write."""
        self._writer.flush()

    def close(self) -> None:
        """Write the rest; an error is only printed, since the program is exiting."""
        if os.getpid() != self.pid:
            return
        try:
            self.flush()
        except Exception as error:
            sys.stderr.write(f"ropewalk: the last metrics could not be written: {error}\n")

    # --- called in the thread

    def _write_metrics(self, lines: list[dict[str, Any]]) -> None:
        self._log = self._log or MetricLog(self._context)
        self._log.write(lines)

    def _write_progress(self, reports: list[dict[str, Any]]) -> None:
        write_json(self._context.run.progress, reports[-1], durable=False)

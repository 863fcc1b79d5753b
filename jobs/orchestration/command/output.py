"""Metrics out of what a program prints: its output passes through, and patterns are looked for in it line by line."""

import logging
import math
import os
import re
import threading

from ropewalk.cluster.errors import StaleAttemptError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.results.metrics import MetricLog

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 16
LONGEST_LINE_BYTES = 1 << 16  # what is longer is no line of a log


class Output:
    """Reads a program's output, copies it to this process's own, and logs the metrics that it finds."""

    def __init__(self, context: JobContext, config: CommandConfig) -> None:
        self._read, self._write = os.pipe()
        self._log, self._run, self._total = MetricLog(context), context.run, config.steps
        self._patterns = {name: re.compile(pattern) for name, pattern in config.metrics.items()}
        self._step_pattern = re.compile(config.step_pattern) if config.step_pattern else None
        self._step = 0
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)

    def fileno(self) -> int:
        """The end of the pipe that the program writes to."""
        return self._write

    def started(self) -> None:
        """Begin to read: the program holds the pipe's other end now."""
        os.close(self._write)
        self._thread.start()

    def close(self) -> None:
        """Wait until all that was written is read; whatever the program has left running may hold the pipe open, and is left."""
        self._thread.join(timeout=5.0)

    def _copy(self) -> None:
        rest = b""
        while chunk := os.read(self._read, CHUNK_BYTES):
            os.write(1, chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-LONGEST_LINE_BYTES:]
            self._take(lines)
        self._take([rest])

    def _take(self, lines: list[bytes]) -> None:
        """Log what is found. Whatever goes wrong with that, the program's output is read on, or the program would stand still."""
        try:
            self._log_lines(lines)
        except StaleAttemptError:  # another attempt writes the metrics now
            pass
        except OSError as error:
            log.warning("metrics of the program are not written: %s", error)

    def _log_lines(self, lines: list[bytes]) -> None:
        found = []
        for raw in lines:
            line = raw.decode(errors="replace")
            read = {name: _number(pattern.search(line)) for name, pattern in self._patterns.items()}
            values = {name: value for name, value in read.items() if value is not None}
            if self._step_pattern is not None:
                step = _number(self._step_pattern.search(line))
                self._step = int(step) if step is not None and math.isfinite(step) else self._step
            elif values:
                self._step += 1
            if values:
                found.append((self._step, values))
        for step, values in found:
            self._log.log(step, values)
        if found:
            progress = {"stage": "train", "done": self._step, "total": self._total, "unit": "steps"}
            write_json(self._run.progress, progress, durable=False)


def _number(match: re.Match[str] | None) -> float | None:
    if match is None or match[1] is None:  # a group of an alternative that did not match
        return None
    try:
        return float(match[1].replace(",", ""))
    except ValueError:
        return None

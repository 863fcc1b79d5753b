"""Reports of a training run: metrics, events, progress. Rank 0 alone reports, and writes to disk in a thread."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ropewalk.cluster.run.background import BackgroundWriter
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import append_lines, write_json
from ropewalk.cluster.run.names import HISTOGRAMS
from ropewalk.cluster.run.phase_clock import Phase, TimeClass
from ropewalk.jobs.results.goodput import COUNTED
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.results.readable import add_rows, write_table
from ropewalk.jobs.training.loop.report.layers import EDGES, LayerStats
from ropewalk.jobs.training.loop.report.samples import COLUMNS, TABLE, Row
from ropewalk.jobs.training.loop.report.stragglers import COLUMNS as RANK_COLUMNS
from ropewalk.jobs.training.loop.report.stragglers import TABLE as RANK_TABLE
from ropewalk.jobs.training.loop.report.stragglers import Stragglers
from ropewalk.jobs.training.loop.report.throughput import Meter
from ropewalk.jobs.training.loop.report.time_account import TimeAccount
from ropewalk.jobs.training.loop.update.state import Progress
from ropewalk.jobs.training.loop.update.step import StepStats
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.5
_LOG_SECONDS = 10.0  # numbers go to the metrics; the log only shows that the rank is alive, and its step


class Report:
    """Writer of reports into the run directory, in the background: a step does not wait for a shared file system.

    An error of the thread (a full disk, a newer attempt) is raised by the next call of any method.
    """

    def __init__(
        self, context: JobContext, group: Group, meter: Meter, *, steps: int, log_every: int, hosts: Sequence[str] = ()
    ) -> None:
        """`hosts`: names of the ranks' machines, by rank."""
        self._context, self._is_main, self.meter = context, group.is_main, meter
        self._steps, self._log_every = steps, log_every
        self._metrics = MetricLog(context) if group.is_main else None
        self._writer = BackgroundWriter(context.fence.check, waits=self._beat_waiting) if group.is_main else None
        self._step = 0  # last reported
        self._reported = self._logged = 0.0
        self._rates: dict[str, float] = {}
        self._time = TimeAccount(context) if group.is_main else None
        self._stragglers = Stragglers(hosts)
        self.holds = False  # True while each step is copied to memory: its metrics are written once the copy is complete
        self._held: deque[dict[str, Any]] = deque()  # lines of metrics.jsonl, in order
        self._releasing = threading.Lock()  # by the loop, or by the thread that commits a copy

    def start(self, training_seconds: float | None) -> None:
        """Begin at a checkpoint, or go back to it. `training_seconds`: what counted when it was saved, None if unknown."""
        self.release()
        if self._time is not None:
            self._time.go_back(training_seconds)
            self._event(COUNTED, self._time.record())

    @property
    def training_seconds(self) -> float:
        """Seconds of training that count, on rank 0."""
        return self._time.training_seconds if self._time is not None else 0.0

    def lose(self) -> None:
        """Report that the group ends within a phase. An agent's event says when, and whether it hung before."""
        if self._time is not None:
            self._event(COUNTED, self._time.record(until_now=False))

    def event(self, kind: str, **fields: Any) -> None:
        self._log("%s %s", kind, " ".join(f"{key}={value}" for key, value in fields.items()))
        self._event(kind, fields)

    def _event(self, kind: str, fields: dict[str, Any]) -> None:
        if self._writer is not None:
            where = {"attempt": self._context.attempt, "group": self._context.group}
            self._writer.put(self._write_events, {"event": kind, "time": time.time(), **where, **fields})

    def step(self, stats: StepStats) -> None:
        """Report a step that was applied."""
        self._step = stats.step
        self.meter.count_step()
        if self._metrics is None or self._writer is None:
            return
        self._writer.raise_error()
        if stats.ranks:
            slow, ended = self._stragglers.add(stats.ranks)
            for fields in slow:
                self.event("straggler", step=stats.step, **fields)
            for fields in ended:
                self.event("straggler_ended", step=stats.step, **fields)
        if stats.step % self._log_every == 0:
            speed = self.meter.read(stats.ended)
            self._rates = {"tokens/s": speed["train/tokens_per_second"]}
            values = {
                "train/loss": stats.loss,
                "train/learning_rate": stats.learning_rate,
                "train/gradient_norm": stats.gradient_norm,
                "train/position": stats.position,
                **{f"train/{name}": value for name, value in stats.metrics.items()},
                **self._stragglers.metrics(),
            }
            values |= {**speed, **self._time.metrics()} if self._time is not None else speed
            self._put_line(self._metrics.line(stats.step, values, _wall_time(stats)))
        if (now := time.monotonic()) - self._reported > _PROGRESS_SECONDS:
            self._reported = now
            self._progress(stats.step)
        if now - self._logged > _LOG_SECONDS:
            self._logged = now
            self._ranks()
            self._log("step %d/%d, loss %.4f, %.0f tokens/s", stats.step, self._steps, stats.loss, self._rates.get("tokens/s", 0))

    def _progress(self, step: int) -> None:
        assert self._writer is not None
        report = {"stage": "train", "done": step, "total": self._steps, "unit": "steps", "rates": self._rates}
        self._writer.put(self._write_progress, report)

    def _ranks(self) -> None:
        if self._writer is not None and (rows := self._stragglers.table()):
            self._writer.put(self._write_ranks, rows)

    def layers(self, step: StepStats, stats: LayerStats) -> None:
        """Report norms as metrics, and histograms in their own file."""
        if self._metrics is not None and self._writer is not None:
            when = _wall_time(step)
            self._put_line(self._metrics.line(step.step, stats.norms, when))
            line = {"step": step.step, "attempt": self._context.attempt, "time": when, "edges": EDGES, "counts": stats.counts}
            self._writer.put(self._write_histograms, line)

    def validation(self, progress: Progress) -> None:
        if self._metrics is not None and self._writer is not None:
            self._log("step %d: %s", progress.step, ", ".join(f"{k} {v:.4f}" for k, v in progress.validation.items()))
            self._put_line(self._metrics.line(progress.step, progress.validation))

    def samples(self, rows: list[Row]) -> None:
        """Report generated samples, replacing those of the same step before a resume."""
        if self._writer is not None:
            self._writer.put(self._write_samples, rows)

    def _put_line(self, line: dict[str, Any]) -> None:
        self._held.append(line)
        if not self.holds:
            self.release()

    def release(self, step: float = math.inf) -> None:
        """Write the metrics that are held, up to a step."""
        if self._metrics is None or self._writer is None:
            return
        with self._releasing:
            while self._held and self._held[0]["step"] <= step:
                self._writer.put(self._metrics.write, self._held[0])
                self._held.popleft()

    def make_durable(self, step: int) -> None:
        """Write the metrics up to a step, and wait until all reports are on disk. Raises the error of a failed write."""
        self.release(step)
        self.flush()

    def close(self, step: int) -> None:
        """Report the last step, and wait until everything is on disk."""
        self.release()
        if self._time is not None:
            self._progress(step)
            self._ranks()
            self._event(COUNTED, self._time.record(TimeClass.STOPPED))
        self.flush()

    def flush(self) -> None:
        """Wait until all reports are on disk, except metrics that are held. Raises the error of a failed write."""
        if self._writer is not None and self._metrics is not None:
            self._writer.flush()
            self._metrics.sync()

    def end(self) -> None:
        """End the thread."""
        if self._writer is not None:
            self._writer.end()

    def _beat_waiting(self) -> None:
        """Tell the agent that this step waits for a blocked file system, so that it is not considered hung."""
        self._context.heart.beat(Phase.REPORT, self._step)

    # --- in the thread

    def _log(self, message: str, *values: object) -> None:
        """Log a line in the thread: the log is on the same file system as the run."""
        if self._writer is not None:
            self._writer.put(self._write_log, (message, values))

    def _write_log(self, lines: list[tuple[str, tuple[object, ...]]]) -> None:
        for message, values in lines:
            log.info(message, *values)

    def _write_events(self, lines: list[dict[str, Any]]) -> None:
        self._context.run.events.append(*lines)

    def _write_histograms(self, lines: list[dict[str, Any]]) -> None:
        append_lines(self._context.run.path / HISTOGRAMS, lines)

    def _write_samples(self, reports: list[list[Row]]) -> None:
        for rows in reports:
            add_rows(self._context.run.path, TABLE, COLUMNS, rows, key=COLUMNS[0])

    def _write_ranks(self, reports: list[list[tuple[Any, ...]]]) -> None:
        write_table(self._context.run.path, RANK_TABLE, RANK_COLUMNS, reports[-1], figures=True)

    def _write_progress(self, reports: list[dict[str, Any]]) -> None:
        write_json(self._context.run.progress, reports[-1], durable=False)


def _wall_time(stats: StepStats) -> float:
    """Return when a step ended, in seconds since the epoch."""
    return time.time() - (time.perf_counter() - stats.ended)

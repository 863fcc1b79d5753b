"""Following of a run until it has ended: progress as a bar or lines, and events as they happen."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from ropewalk.cluster.backends.recovery import NO_ANSWER
from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import mount_of
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import Engine, RunState
from ropewalk.jobs.results.metrics import EventTail, latest_metrics
from ropewalk.jobs.runs.show.events import format_event
from ropewalk.jobs.runs.show.logs import ProgramOutput
from ropewalk.jobs.runs.show.remote import Copy
from ropewalk.jobs.runs.show.status import GONE, final_outcome, settle, wandb_address
from ropewalk.jobs.runs.show.view import RunView, view_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import TaskID

POLL_SECONDS = 0.25
QUERY_SECONDS = 3.0  # between two queries of the scheduler
PLAIN_SECONDS = 5.0  # between two lines without a terminal
SILENT_SECONDS = 2.0  # without a terminal, before the first line
STARTING = "starting"
LOST_ANSWERS = 3  # consecutive answers without the run until the run counts as lost


class Watch:
    """Detects the end of a run: a final outcome, or no process that runs it."""

    def __init__(self, run: RunDir, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self._clock, self._copy = run, clock, Copy(run)
        self._next_query = clock() + QUERY_SECONDS
        self._lost = 0
        self.abandoned = ""  # reason why no process runs it
        self.waits = ""  # the scheduler's reason why it waits
        self.unseen = ""  # error of a scheduler that does not answer

    def over(self) -> bool:
        """Return True if the run has ended. The outcome is in the run directory, or the reason in `abandoned`."""
        if final_outcome(self.run) is not None:
            self._copy.freshen()
            return True
        if self._clock() >= self._next_query:
            self._next_query = self._clock() + QUERY_SECONDS
            state = settle(self.run)
            self._copy.freshen()
            self.unseen = state.reason if state.word == NO_ANSWER else ""
            self.waits = state.reason if state.state in {RunState.PENDING, RunState.REQUEUED} and not self.unseen else ""
            # a final state without a final outcome means that the outcome could not be written
            gone = state.state is RunState.UNKNOWN or state.word in GONE or state.state.final
            self._lost = self._lost + 1 if gone else 0
            if self._lost >= LOST_ANSWERS:
                self.abandoned = state.reason or "the scheduler no longer knows the run"
        return bool(self.abandoned)


def wait(run: RunDir, sleep: Callable[[float], None] = time.sleep) -> Watch:
    """Wait until the run has ended."""
    watch = Watch(run)
    while not watch.over():
        sleep(POLL_SECONDS)
    return watch


def follow(
    run: RunDir, console: "Console", sleep: Callable[[float], None] = time.sleep, program_output: TextIO | None = None
) -> Watch:
    """Show progress and events on `console`, and the user's program's output on its own stream, until the run has ended."""
    if mount_of(run.path).shared:  # otherwise an NFS client may cache for a minute that there is no progress file
        for path in (run.progress, run.metrics):
            read_afresh(path)
    watch = Watch(run)
    view: _Bar | _Lines = _Bar(run, console) if console.is_terminal else _Lines(run, console)
    notice = address = ""
    resumed = len(run.attempts()) > 1  # earlier events and output were shown before
    events = EventTail(run, skip=resumed)
    output = ProgramOutput(run, skip=resumed) if program_output is not None and view_of(run).shows_output else None
    with view:
        while True:
            last_round = watch.over()
            if not address and (address := wandb_address(run) or ""):  # available once a mirror has created the W&B run
                view.say(f"W&B: {address}")
            if program_output is not None and output is not None:
                for line in output.new_lines(to_the_end=last_round):
                    view.pass_on(line, program_output)
            for event in events.new_events(last=last_round):
                text = format_event(event)
                if text is not None and not _is_end(event):
                    view.say(text)
            for text in view.news():
                view.say(text)
            text = watch.unseen or (f"waiting{_awaited(watch.waits)}" if watch.waits else "")
            if text != notice:
                notice = text
                if notice:
                    view.say(notice)
            view.show()
            if last_round:
                return watch
            sleep(POLL_SECONDS)


def _awaited(reason: str) -> str:
    """Return a scheduler's reason for a sentence that begins with `waiting`."""
    return f" for {reason.removeprefix('waits for ')}" if reason.startswith("waits for ") else f": {reason}"


def _is_end(event: Mapping[str, Any]) -> bool:
    """Return True for the end of the run, which the caller prints."""
    return event["event"] == "attempt_ended" and RunState(event["state"]).final


def _start(run: RunDir, view: RunView) -> str:
    """Return the activity of a run that has not reported progress; not all jobs do."""
    attempts, loads_model = run.attempts(), run.record.get("engine") == Engine.RANKS and not view.shows_output
    if attempts and any(True for _ in run.log_dir(attempts[-1]).glob("rank-*.log")):
        return "running: the data and the model are being loaded" if loads_model else "running"
    return f"{STARTING}: PyTorch and the job's modules are being imported" if loads_model and attempts else STARTING


class _Bar:
    """Progress as a live bar on a terminal."""

    def __init__(self, run: RunDir, console: "Console") -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self.run, self._view, self._eta = run, view_of(run), _Eta()
        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[words]}", markup=False),
        )
        rate = 10 if self._view.live() is None else 4  # a table costs more to draw than a bar
        self._live = Live(get_renderable=self._picture, console=console, transient=True, refresh_per_second=rate)
        self._stage = STARTING
        self._task: TaskID = self._progress.add_task(self._stage, total=None, words="")

    def __enter__(self) -> "_Bar":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _picture(self) -> "RenderableType":
        from rich.console import Group

        below = self._view.live()
        return self._progress if below is None else Group(self._progress, below)

    def news(self) -> Iterable[str]:
        return self._view.news()

    def say(self, text: str) -> None:
        from rich.text import Text

        # a style of the print itself would dim the bar and the table too
        self._live.console.print(Text(text, style="dim"), soft_wrap=True)

    def pass_on(self, line: str, stream: TextIO) -> None:
        if not stream.isatty():
            return _write(line, stream)
        from rich.text import Text

        return self._live.console.print(Text.from_ansi(line), soft_wrap=True)  # above the bar

    def show(self) -> None:
        report = read_json(self.run.progress)
        if not report:
            if (stage := _start(self.run, self._view)) != self._stage:
                self._stage = stage
                self._progress.update(self._task, description=self._stage)
                self._live.refresh()
            return
        text = describe(report, latest_metrics(self.run), self._eta, self._view)
        if report["stage"] != self._stage:  # a task's total cannot become unknown again
            self._stage = report["stage"]
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(self._stage, total=report.get("total"), words=text)
            self._progress.update(self._task, completed=report["done"])
            self._live.refresh()  # so that short stages are visible too
        self._progress.update(self._task, completed=report["done"], total=report.get("total"), words=text)


class _Lines:
    """Progress as plain lines, for logs and pipes."""

    def __init__(self, run: RunDir, console: "Console") -> None:
        self.run, self.console, self._view, self._eta = run, console, view_of(run), _Eta()
        self._last_text, self._stage, self._next = "", STARTING, time.monotonic() + SILENT_SECONDS

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def news(self) -> Iterable[str]:
        return self._view.news()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def pass_on(self, line: str, stream: TextIO) -> None:
        _write(line, stream)

    def show(self) -> None:
        report = read_json(self.run.progress)
        now = time.monotonic()
        if not report:
            if now >= self._next and (text := _start(self.run, self._view)) != self._stage:
                self.say(text)
                self._stage = text
            return
        if now < self._next and report["stage"] == self._stage:
            return
        text = f"{report['stage']}: {describe(report, latest_metrics(self.run), self._eta, self._view)}"
        if text != self._last_text:
            self.say(text)
        self._last_text, self._stage, self._next = text, report["stage"], now + PLAIN_SECONDS


def _write(line: str, stream: TextIO) -> None:
    stream.write(f"{line}\n")
    stream.flush()


class _Eta:
    """Estimate of the remaining time from the recent speed, so that a slow start has no lasting effect."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, str, float]] = deque(maxlen=120)

    def seconds(self, stage: str, done: float, total: float | None) -> float | None:
        now = time.monotonic()
        if self._samples and (self._samples[-1][1] != stage or self._samples[-1][2] > done):
            self._samples.clear()
        self._samples.append((now, stage, done))
        seconds, work = now - self._samples[0][0], done - self._samples[0][2]
        return (total - done) * seconds / work if total and work > 0 and seconds > 0 else None


def describe(report: dict[str, Any], metrics: dict[str, Any], eta: _Eta, view: RunView) -> str:
    """Format a progress report, such as `120/300 steps  loss 4.21  12.3k tokens/s  ETA 0:42`, with the text of the job's view."""
    if report.get("words"):
        return str(report["words"])
    done, total, unit = report["done"], report.get("total"), report.get("unit", "")
    if unit == "B":
        done, total, unit = round(done / 1e6, 1), None if total is None else round(total / 1e6, 1), "MB"
    parts = [f"{done:,}/{total:,} {unit}" if total is not None else f"{done:,} {unit.removesuffix('s') if done == 1 else unit}"]
    for key, name in (("train/loss", "loss"), ("validation/loss", "validation")):
        if report["stage"] == "train" and metrics.get(key) is not None:
            parts.append(f"{name} {metrics[key]:.3f}")
    if job_text := view.words():
        parts.append(job_text)
    parts += [f"{_short(value)} {name}" for name, value in (report.get("rates") or {}).items() if value]
    left = eta.seconds(report["stage"], report["done"], report.get("total"))
    if left is not None and left >= 1:
        parts.append(f"ETA {int(left) // 60}:{int(left) % 60:02d}")
    return "  ".join(parts)


def _short(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{suffix}"
    return f"{value:.1f}"

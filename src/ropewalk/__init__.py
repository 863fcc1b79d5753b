"""What a program of yours can tell the run that it is part of, and ask of it.

    import ropewalk

    latest = ropewalk.latest_checkpoint()            # None at the first start
    for step in range(start, steps):
        ...
        ropewalk.log({"train/loss": loss}, step=step)
        if step % 100 == 0 or ropewalk.stop_requested():
            torch.save(state, ropewalk.checkpoint_dir() / f"step-{step}.pt")
            ropewalk.commit_checkpoint(ropewalk.checkpoint_dir() / f"step-{step}.pt")
        if ropewalk.stop_requested():
            sys.exit(85)                             # requeued: the next attempt goes on from here

It imports nothing heavy, and works in any program: outside a run it prints what is logged, keeps checkpoints in
`./checkpoints`, and is never asked to stop.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ropewalk.cluster.errors import RopewalkError

if TYPE_CHECKING:
    from ropewalk.cluster.run.context import JobContext
    from ropewalk.jobs.orchestration.function.futures import Future
    from ropewalk.jobs.runs.program.recorder import Recorder

__all__ = [
    "Future",
    "RopewalkError",
    "checkpoint_dir",
    "commit_checkpoint",
    "latest_checkpoint",
    "log",
    "map",
    "progress",
    "run",
    "runs",
    "stop_requested",
    "submit",
]

PRINT_SECONDS = 1.0  # outside a run, between two lines of metrics
PROGRESS_SECONDS = 0.5


class Run:
    """The run that this program is part of; outside of one `id` is empty and `directory` None."""

    @property
    def directory(self) -> Path | None:
        """The run's directory."""
        named = os.environ.get("ROPEWALK_RUN")
        return Path(named) if named else None

    @property
    def id(self) -> str:
        """The run's id, as `ropewalk ps` shows it."""
        return self.directory.name if self.directory is not None else ""

    @property
    def attempt(self) -> int:
        """Which attempt of the run this is, counted from 1; 0 outside a run."""
        return int(os.environ.get("ROPEWALK_ATTEMPT", "0"))

    @property
    def rank(self) -> int:
        """This process's rank in its training group."""
        return int(os.environ.get("RANK", "0"))

    def __bool__(self) -> bool:
        """Whether this program is part of a run."""
        return self.directory is not None

    def __call__(self, job: str, config: Mapping[str, Any] | str | Path, *overrides: str, on: str = "local") -> dict[str, Any]:
        """Run a job to its end, as `ropewalk run JOB` does; `config` is a mapping of its keys, or a job file.

        Returns the job's results, with run, job, state and directory. Raises RopewalkError.
        """
        from ropewalk.jobs.orchestration.function.futures import submit_job

        results: dict[str, Any] = submit_job(job, config, on, overrides).result()
        return results

    @cached_property
    def _context(self) -> "JobContext":
        from ropewalk.cluster.run.context import JobContext
        from ropewalk.cluster.run.directory import RunDir

        assert self.directory is not None
        group = int(os.environ.get("ROPEWALK_GROUP", "0"))
        return JobContext(run=RunDir(self.directory), attempt=self.attempt, group=group, rank=self.rank)

    @property
    def _recorder(self) -> "Recorder":
        from ropewalk.jobs.runs.program.recorder import recorder

        return recorder(self._context)


def __getattr__(name: str) -> Any:
    """Import `Future` when it is first used: this module is light, and every program of a run imports it."""
    if name == "Future":
        from ropewalk.jobs.orchestration.function.futures import Future

        return Future
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


run = Run()
_printed = 0.0
_told = 0.0
_total: int | None = None
_stop_seen = False


def log(metrics: Mapping[str, float], step: int, reduce: Literal["mean", "sum"] | None = None) -> None:
    """Record metrics of a step; `ropewalk show`, `ps` and W&B have them a quarter of a second later.

    Rank 0 records; the others may call it too, and do nothing. With `reduce` all ranks must call it: what is recorded is the
    mean or the sum over them. A thread writes: a step waits for no file system, and what was told is written before the program
    exits. The next call raises what went wrong, in a process whose attempt has a successor StaleAttemptError.
    """
    values = {name: float(value) for name, value in metrics.items()}
    if reduce is not None:
        values = _reduced(values, reduce)
    if run.rank != 0:
        return
    if run:
        run._recorder.metrics(step, values)
        _tell(step, _total, "steps")
    else:
        _print(step, values)


def progress(done: int, total: int | None = None, unit: str = "steps") -> None:
    """Tell how much is done, for progress bars; `log` tells its step by itself."""
    global _total  # noqa: PLW0603 - one program is one run
    _total = total if total is not None else _total
    if run and run.rank == 0:
        _tell(done, _total, unit, now=done == total)


def stop_requested(agree: bool | None = None) -> bool:
    """Whether the scheduler wants the nodes back, or the user the run cancelled: save, and leave with exit code 85.

    Where torch.distributed is initialized all ranks must call it at the same point, such as once a step, and get the same
    answer; `agree=False` asks about this node alone. From the first call on the signal that announces a stop does not end
    this program any more, unless the program handles it itself.
    """
    global _stop_seen  # noqa: PLW0603 - a stop is never taken back
    _outlive_stop_signal()
    flags = (os.environ.get("ROPEWALK_STOP_FLAG"), os.environ.get("ROPEWALK_REGROUP_FLAG"))
    _stop_seen = _stop_seen or any(flag is not None and os.path.exists(flag) for flag in flags)
    if agree is False or not run:
        return _stop_seen
    return _reduced({"stop": float(_stop_seen)}, "sum")["stop"] > 0


def checkpoint_dir() -> Path:
    """The directory for checkpoints: it outlives the attempt. Outside a run it is `./checkpoints`."""
    folder = Path(os.environ.get("ROPEWALK_CHECKPOINTS") or "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def commit_checkpoint(path: str | os.PathLike[str], step: int | None = None, keep: int | None = None) -> None:
    """Declare a checkpoint complete: a directory or a file directly below `checkpoint_dir()`, written by all ranks.

    Call it on all ranks once each has written its part. A manifest with checksums is written; without one a checkpoint is
    never the latest. `step` defaults to the last number in its name. `keep` removes all but so many of the newest. Raises
    CheckpointError, and StaleAttemptError in a process whose attempt has a successor.
    """
    from ropewalk.jobs.runs.program import checkpoints

    _barrier()
    if run.rank == 0:
        folder = checkpoint_dir()
        check = run._context.fence.check if run else lambda: None
        if run:
            run._recorder.flush()  # what it goes on behind is on the disk before it
        manifest = checkpoints.commit(folder, Path(path), step, check)
        if run:
            run._context.run.event("checkpoint", step=manifest["step"], attempt=run.attempt)
        if keep is not None:
            checkpoints.prune(folder, keep)
    _barrier()


def latest_checkpoint() -> Path | None:
    """The newest committed checkpoint whose bytes are intact; None at the first start. Every rank may ask."""
    from ropewalk.jobs.runs.program import checkpoints

    def complain(name: str, problem: str) -> None:
        sys.stderr.write(f"ropewalk: the checkpoint {name} is left out: {problem}\n")
        if run and run.rank == 0:
            run._context.run.event("bad_checkpoint", step=checkpoints.step_in(name), problems=problem)

    return checkpoints.latest(checkpoint_dir(), complain)


def submit(
    function: Callable[..., object],
    *args: object,
    on: str = "local",
    by_value: bool = False,
    launch: Literal["once", "ranks"] = "once",
    name: str | None = None,
    kwargs: Mapping[str, object] | None = None,
    **resources: Any,
) -> "Future":
    """Call a function on a cluster; returns a future with `result()`, `exception()`, `state`, `cancel()` and `directory`.

    The function is imported there by its name, and takes and returns plain values; with `by_value` it travels with its
    arguments as a pickle in the run's own directory, and so does its result. `resources` are those of a job file: nodes=2,
    gpus=8, memory_gib=64. Raises RopewalkError.
    """
    from ropewalk.jobs.orchestration.function.futures import submit_function

    settings = {"launch": launch, "name": name, "resources": resources}
    return submit_function(function, [(args, kwargs or {})], on=on, by_value=by_value, settings=settings)[0]


def map(  # noqa: A001 - as in submitit and concurrent.futures
    function: Callable[..., object],
    *iterables: Iterable[object],
    on: str = "local",
    by_value: bool = False,
    name: str | None = None,
    at_once: int | None = None,
    **resources: Any,
) -> "list[Future]":
    """Call a function for each element, or each tuple of several iterables, as one array of runs; their futures in order."""
    from ropewalk.jobs.orchestration.function.futures import submit_function

    calls: list[tuple[tuple[object, ...], Mapping[str, object]]] = [(args, {}) for args in zip(*iterables, strict=True)]
    settings = {"name": name, "resources": resources}
    return submit_function(function, calls, on=on, by_value=by_value, settings=settings, at_once=at_once) if calls else []


def runs() -> "list[Future]":
    """Every run, newest first."""
    from ropewalk.jobs.orchestration.function.futures import known_runs

    return known_runs()


@cache
def _outlive_stop_signal() -> None:
    """Keep the signal that announces a stop from ending a program that asks for stops, and so saves by itself."""
    name = os.environ.get("ROPEWALK_STOP_SIGNAL", "")
    if name and threading.current_thread() is threading.main_thread():
        number = signal.Signals[name]
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, lambda *_: None)


def _tell(done: int, total: int | None, unit: str, *, now: bool = False) -> None:
    global _told  # noqa: PLW0603
    if not now and time.monotonic() - _told < PROGRESS_SECONDS:
        return
    _told = time.monotonic()
    run._recorder.progress(done, total, unit)


def _print(step: int, values: Mapping[str, float]) -> None:
    global _printed  # noqa: PLW0603
    if time.monotonic() - _printed >= PRINT_SECONDS:
        _printed = time.monotonic()
        sys.stdout.write(f"step {step}  {'  '.join(f'{name} {value:.6g}' for name, value in values.items())}\n")


def _group() -> Any:
    """torch.distributed, where the program has initialized it; importing torch is left to the program."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed if distributed.get_world_size() > 1 else None


def _barrier() -> None:
    if (group := _group()) is not None:
        group.barrier()


def _reduced(values: dict[str, float], how: str) -> dict[str, float]:
    group = _group()
    if group is None:
        return values
    import torch

    device = "cuda" if "nccl" in str(group.get_backend()) else "cpu"
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    group.all_reduce(tensor)
    size = group.get_world_size() if how == "mean" else 1
    return {name: value / size for name, value in zip(values, tensor.tolist(), strict=True)}

"""The interface for users' programs: metrics, checkpoints and stop requests of the current run; submission of new runs.

    import ropewalk

    latest = ropewalk.latest_checkpoint()            # None at the first start
    for step in range(start, steps):
        ...
        ropewalk.log({"train/loss": loss}, step=step)
        if step % 100 == 0 or ropewalk.stop_requested():
            path = ropewalk.checkpoint_dir() / f"step-{step}.pt"
            if ropewalk.run.rank == 0:               # one rank writes a file that all would write alike
                torch.save(state, path)
            ropewalk.commit_checkpoint(path)         # on every rank
        if ropewalk.stop_requested():
            sys.exit(85)                             # requeued: the next attempt resumes here

Other runs start from a program or a notebook, on this machine or a cluster:

    results = ropewalk.run("pretrain", {"data": "data/tokens", "steps": 300}, "optim.lr=1e-3")   # returns at the end
    future = ropewalk.submit(function, 3, on="big")                                              # future.result()

The module is light and works in any program. Outside a run it prints metrics, keeps checkpoints in `./checkpoints`, and never
requests a stop.
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

from ropewalk.cluster.errors import ConfigError, RopewalkError

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

PRINT_SECONDS = 1.0  # between two printed lines of metrics outside a run
PROGRESS_SECONDS = 0.5  # between two updates of progress.json


class Run:
    """The run of this program. Outside a run `id` is empty and `directory` is None."""

    @property
    def directory(self) -> Path | None:
        directory = os.environ.get("ROPEWALK_RUN")
        return Path(directory) if directory else None

    @property
    def id(self) -> str:
        """The run id that `ropewalk ps` shows."""
        return self.directory.name if self.directory is not None else ""

    @property
    def attempt(self) -> int:
        """The number of the attempt, counted from 1; 0 outside a run."""
        return int(os.environ.get("ROPEWALK_ATTEMPT", "0"))

    @property
    def rank(self) -> int:
        """The rank of this process in its training group."""
        return int(os.environ.get("RANK", "0"))

    def __repr__(self) -> str:
        return f"<run {self.id}, attempt {self.attempt}, rank {self.rank}>" if self else "<no run>"

    def __bool__(self) -> bool:
        """Return True inside a run."""
        return self.directory is not None

    def __call__(self, job: str, config: Mapping[str, Any] | str | Path, *overrides: str, on: str = "local") -> dict[str, Any]:
        """Run a job to its end, as `ropewalk run JOB` does. `config` is a mapping of its keys, or the path of a job file.

        Returns the job's results with run, job, state and directory. Raises RopewalkError.
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
    """Import `Future` on first use, to keep this module light."""
    if name == "Future":
        from ropewalk.jobs.orchestration.function.futures import Future

        return Future
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


run = Run()
_last_print = 0.0
_last_progress = 0.0
_total: int | None = None
_stopping = False


def log(metrics: Mapping[str, float], step: int, reduce: Literal["mean", "sum"] | None = None) -> None:
    """Record metrics of a step. `ropewalk show`, `ps` and W&B show them a quarter of a second later.

    Rank 0 records; calls on other ranks do nothing. With `reduce` all ranks must call it, and the mean or sum over ranks is
    recorded. A thread writes, so that a step never waits for a file system; all metrics are written before the program exits.
    An error of the thread is raised by the next call: StaleAttemptError if a newer attempt has started.
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
    """Report progress for progress bars. `log` reports its step by itself."""
    global _total  # noqa: PLW0603 - one program is one run
    _total = total if total is not None else _total
    if run and run.rank == 0:
        _tell(done, _total, unit, now=done == total)


def stop_requested(agree: bool | None = None) -> bool:
    """Return True if the program should save and exit with code 85: preemption, time limit or cancellation.

    If torch.distributed is initialized, all ranks must call it at the same point, such as once a step, and get the same
    answer; `agree=False` checks this node only. After the first call the stop signal no longer ends the program, unless the
    program has a handler of its own.
    """
    global _stopping  # noqa: PLW0603 - a stop request is final
    _outlive_stop_signal()
    flags = (os.environ.get("ROPEWALK_STOP_FLAG"), os.environ.get("ROPEWALK_REGROUP_FLAG"))
    _stopping = _stopping or any(flag is not None and os.path.exists(flag) for flag in flags)
    if agree is False or not run:
        return _stopping
    return _reduced({"stop": float(_stopping)}, "sum")["stop"] > 0


def checkpoint_dir() -> Path:
    """Return the directory for checkpoints, which outlives the attempt. Outside a run it is `./checkpoints`."""
    folder = Path(os.environ.get("ROPEWALK_CHECKPOINTS") or "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def commit_checkpoint(path: str | os.PathLike[str], step: int | None = None, keep: int | None = None) -> None:
    """Declare a checkpoint complete: a directory or file directly below `checkpoint_dir()`, written by all ranks.

    Call it on all ranks after each has written its part. It writes a manifest with checksums; without one a checkpoint is
    never the latest. `step` defaults to the last number in the name. `keep` removes all but the newest `keep` checkpoints.
    Raises CheckpointError, and StaleAttemptError if a newer attempt has started.
    """
    from ropewalk.jobs.runs.program import checkpoints

    _barrier()
    if run.rank == 0:
        folder = checkpoint_dir()
        check = run._context.fence.check if run else lambda: None
        if run:
            run._recorder.flush()  # metrics up to this step are on disk before the checkpoint
        manifest = checkpoints.commit(folder, Path(path), step, check)
        if run:
            run._context.run.event("checkpoint", step=manifest["step"], attempt=run.attempt)
        if keep is not None:
            checkpoints.prune(folder, keep)
    _barrier()


def latest_checkpoint() -> Path | None:
    """Return the newest committed and intact checkpoint, or None at the first start. Any rank may call it."""
    from ropewalk.jobs.runs.program import checkpoints

    def report_damage(name: str, problem: str) -> None:
        sys.stderr.write(f"ropewalk: skipping checkpoint {name}: {problem}\n")
        if run and run.rank == 0:
            run._context.run.event("bad_checkpoint", step=checkpoints.step_in(name), problems=problem)

    return checkpoints.latest(checkpoint_dir(), report_damage)


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
    """Call a function on a cluster; return a future with `result()`, `exception()`, `state`, `cancel()` and `directory`.

    The function is imported by name on the cluster, and takes and returns plain values. With `by_value` the function, its
    arguments and its result are pickled into the run directory. `resources` are the keys of a job file: nodes=2, gpus=8,
    memory_gib=64. Raises RopewalkError.
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
    """Call a function for each tuple of the iterables, as one array of runs; return the futures in order."""
    from ropewalk.jobs.orchestration.function.futures import submit_function

    columns = [list(iterable) for iterable in iterables]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(str(len(column)) for column in columns)
        raise ConfigError(f"map: the iterables have {lengths} items; pass equally many for each argument of the function")
    calls: list[tuple[tuple[object, ...], Mapping[str, object]]] = [(args, {}) for args in zip(*columns, strict=True)]
    settings = {"name": name, "resources": resources}
    return submit_function(function, calls, on=on, by_value=by_value, settings=settings, at_once=at_once) if calls else []


def runs() -> "list[Future]":
    """Return all runs, newest first."""
    from ropewalk.jobs.orchestration.function.futures import all_futures

    return all_futures()


@cache
def _outlive_stop_signal() -> None:
    """Ignore the stop signal from now on: a program that calls `stop_requested` saves by itself."""
    name = os.environ.get("ROPEWALK_STOP_SIGNAL", "")
    if name and threading.current_thread() is threading.main_thread():
        number = signal.Signals[name]
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, lambda *_: None)


def _tell(done: int, total: int | None, unit: str, *, now: bool = False) -> None:
    global _last_progress  # noqa: PLW0603
    if not now and time.monotonic() - _last_progress < PROGRESS_SECONDS:
        return
    _last_progress = time.monotonic()
    run._recorder.progress(done, total, unit)


def _print(step: int, values: Mapping[str, float]) -> None:
    global _last_print  # noqa: PLW0603
    if time.monotonic() - _last_print >= PRINT_SECONDS:
        _last_print = time.monotonic()
        sys.stdout.write(f"step {step}  {'  '.join(f'{name} {value:.6g}' for name, value in values.items())}\n")


def _group() -> Any:
    """Return torch.distributed if the program has initialized it. This module does not import torch by itself."""
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

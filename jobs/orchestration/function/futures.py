"""Functions and jobs submitted from Python, as futures of their runs."""

import difflib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.profiles import backend_of, load_backend
from ropewalk.cluster.config import Resources
from ropewalk.cluster.config_reader import load_config, read_job_file
from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.function.call import import_path, json_arguments, read_result, write_call
from ropewalk.jobs.orchestration.function.config import FunctionConfig
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.show.status import all_runs, final_object, final_outcome, states
from ropewalk.jobs.runs.submit.submit import create_runs, start, submit

POLL_SECONDS = 0.2


class RunFailedError(RopewalkError):
    """A run did not succeed. The message has its cause and, if there is one, the remote traceback."""


class Future:
    """A run submitted from Python."""

    def __init__(self, run: RunDir, *, pickled: bool = False, submitted_here: bool = True, job: str = "function") -> None:
        self.run, self._pickled, self._submitted_here, self._job = run, pickled, submitted_here, job

    def __repr__(self) -> str:
        return f"Future({self.run.id}: {self.state})"

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def directory(self) -> Path:
        return self.run.path

    @property
    def state(self) -> str:
        """State of the run, such as PENDING, RUNNING, SUCCEEDED."""
        return str(states([self.run])[self.run.id].state)

    def done(self) -> bool:
        """Return True if the run has ended, successfully or not."""
        return final_outcome(self.run) is not None

    def cancel(self) -> None:
        """Cancel the run after a final checkpoint; do nothing if it has ended."""
        if not self.done():
            backend_of(self.run).cancel(self.run)

    def result(self, timeout_seconds: float | None = None) -> Any:
        """Wait for the run; returns the function's result, or a job's results. Raises RunFailedError and TimeoutError."""
        if (error := self.exception(timeout_seconds)) is not None:
            raise error
        if self._job != "function":
            return final_object(self.run)
        if self._pickled:
            return read_result(self.run.attempt_dir(self.run.attempts()[-1]), from_anyone=self._submitted_here)
        return self.run.results().get("result")

    def exception(self, timeout_seconds: float | None = None) -> RunFailedError | None:
        """Wait for the run and return its error, or None if it succeeded. Raises TimeoutError."""
        from ropewalk.jobs.runs.show.follow import wait  # not needed to submit only

        watch = wait(self.run, _sleeper(self.run, timeout_seconds))
        outcome = final_outcome(self.run)
        if outcome is None:
            return RunFailedError(f"{self.run.id} is not running any more: {watch.abandoned}")
        if outcome.state is RunState.SUCCEEDED:
            return None
        errors = self.run.read_errors(self.run.attempts()[-1])
        traceback = str(errors[0].get("traceback") or "") if errors else ""
        return RunFailedError(
            f"{self.run.id} {outcome.state.lower()}: {outcome.cause}" + (f"\n\n{traceback}" if traceback else "")
        )


def submit_function(
    function: Callable[..., object],
    calls: Sequence[tuple[Sequence[object], Mapping[str, object]]],
    *,
    on: str,
    by_value: bool,
    settings: Mapping[str, Any],
    at_once: int | None = None,
) -> list[Future]:
    """Submit one run per call, all together. Raises RopewalkError."""
    name = getattr(function, "__name__", "function")
    reference = name if by_value else import_path(function)
    others = {key: value for key, value in settings["resources"].items() if key not in Resources.model_fields}
    if others:
        near = difflib.get_close_matches(next(iter(others)), Resources.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"pass arguments of the function as kwargs={others!r}"
        raise ConfigError(f"unknown key 'resources.{next(iter(others))}'; {hint}")
    values = {"function": reference, "by_value": by_value, **settings, "name": settings.get("name") or name.strip("<>")}
    common = load_config(FunctionConfig, values)  # validated once: the runs differ only in their arguments
    arguments = [([], {}) if by_value else json_arguments(args, kwargs) for args, kwargs in calls]
    configs = [common.model_copy(update={"args": args, "kwargs": kwargs}) for args, kwargs in arguments]
    backend = load_backend(on)
    if by_value and not backend.shares_files:
        raise ConfigError(f"by_value: this machine does not see the files of {on}; submit a function that can be imported")
    runs = create_runs(backend, "function", configs, on, ("ropewalk.submit",))
    if by_value:
        for run, (args, kwargs) in zip(runs, calls, strict=True):
            write_call(run.path, function, args, kwargs)
    start(backend, runs, configs[0].resources, at_once=at_once)
    return [Future(run, pickled=by_value) for run in runs]


def submit_job(job: str, config: Mapping[str, Any] | str | Path, on: str, overrides: Iterable[str]) -> Future:
    """Submit a job given by its keys or a job file. Raises RopewalkError."""
    values = config if isinstance(config, Mapping) else read_job_file(Path(config), job)
    return Future(submit(job, load_config(config_of(find_job(job)), values, list(overrides)), on), job=job)


def all_futures() -> list[Future]:
    """Return futures of all runs under every root, newest first."""
    futures = []
    for run in reversed(all_runs()):
        by_value = bool((run.record.get("config") or {}).get("by_value"))
        futures.append(Future(run, pickled=by_value, submitted_here=False, job=str(run.record.get("job"))))
    return futures


def _sleeper(run: RunDir, timeout_seconds: float | None) -> Callable[[float], None]:
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds

    def sleep(seconds: float) -> None:
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"{run.id} has not ended after {timeout_seconds:g} s")
        time.sleep(min(seconds, POLL_SECONDS))

    return sleep

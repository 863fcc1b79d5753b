"""Pool of Ray actors: bounded work in flight, dead actors are replaced, part of a CPU is left to the rest of the cluster."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from ropewalk.cluster.errors import BackendError, DataError, RopewalkError, StopRequested
from ropewalk.cluster.run.project import add_project_path
from ropewalk.datapipe.passes.task import DEATHS_A_TASK, SINGLE_THREADED, Task

log = logging.getLogger(__name__)

FAILED_STARTS = 5  # in a row
POLL_SECONDS = 0.25


class _Actor:
    """A `Worker` in its own process, single-threaded so that one can run per CPU."""

    def __init__(self, output_url: str, work_url: str) -> None:
        os.environ.update(SINGLE_THREADED)
        add_project_path()
        import pyarrow as pa  # noqa: PLC0415 - a second of imports that the driver, which has this module too, does not need

        from ropewalk.datapipe.passes.worker import Worker  # noqa: PLC0415

        pa.set_cpu_count(1)
        self.worker = Worker(output_url, work_url)

    def ready(self) -> int:
        return os.getpid()

    def do(self, task: Task) -> Any:
        return self.worker.do(task)


def cpus_an_actor(actors: int, cluster_cpus: float) -> float:
    """Return the CPUs that each actor reserves: one, or less if that would leave none for the rest of the cluster."""
    free = cluster_cpus - 1 if cluster_cpus > 1 else cluster_cpus / 2
    return 1.0 if actors <= free else max(int(free / actors * 1000) / 1000, 0.001)


class ActorPool:
    """Actors that work on one data set; a context manager that ends them on exit."""

    def __init__(self, output_url: str, work_url: str, actors: int | None, stop: Callable[[], bool]) -> None:
        cpus = float(ray.cluster_resources().get("CPU", 1))
        self.size = actors or max(int(cpus), 1)
        self.urls = (output_url, work_url)
        self.stop = stop
        self.kind = ray.remote(_Actor).options(num_cpus=cpus_an_actor(self.size, cpus), max_restarts=0)
        self.starting: dict[Any, Any] = {}  # reference → actor
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Any, Task]] = {}
        self.failed_starts = 0
        self.deaths = 0

    def __enter__(self) -> "ActorPool":
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self.starting.values(), *self.idle, *(a for a, _ in self.busy.values())]:
            ray.kill(actor)
        self.starting, self.idle, self.busy = {}, [], {}

    def run_tasks(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result when it is done.

        Raises the error of a task; DataError for a task that killed three actors; StopRequested once a stop is requested:
        committed work is kept, work in progress is discarded.
        """
        waiting = list(reversed(tasks))
        deaths: dict[int, int] = {}
        try:
            while waiting or self.busy:
                if self.stop():
                    raise StopRequested("asked to stop; committed units and shards are kept")
                self._fill(waiting)
                done, _ = ray.wait([*self.busy, *self.starting], num_returns=1, timeout=POLL_SECONDS)
                for reference in done:
                    if reference in self.starting:
                        self._handle_start(reference)
                        continue
                    actor, task = self.busy.pop(reference)
                    try:
                        result = ray.get(reference)
                    except (RayActorError, WorkerCrashedError, ObjectLostError) as error:
                        ray.kill(actor)  # after a lost object, the actor may still be alive
                        deaths[id(task)] = deaths.get(id(task), 0) + 1
                        self.deaths += 1
                        self._check_deaths(task, deaths[id(task)], error)
                        waiting.append(task)
                        continue
                    except RayTaskError as error:
                        raise error.cause if isinstance(error.cause, (RopewalkError, StopRequested)) else error from None
                    self.idle.append(actor)
                    yield task, result
        except BaseException:
            self.__exit__()
            raise

    def _fill(self, waiting: list[Task]) -> None:
        """Assign tasks to idle actors, and start actors if there are more tasks."""
        while waiting and self.idle:
            actor, task = self.idle.pop(), waiting.pop()
            self.busy[actor.do.remote(task)] = (actor, task)
        present = len(self.idle) + len(self.busy) + len(self.starting)
        for _ in range(min(self.size - present, len(waiting) - len(self.starting))):
            actor = self.kind.remote(*self.urls)
            self.starting[actor.ready.remote()] = actor

    def _handle_start(self, reference: Any) -> None:
        actor = self.starting.pop(reference)
        try:
            ray.get(reference)
        except RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= FAILED_STARTS:
                raise BackendError(f"{self.failed_starts} actors in a row failed to start: {_last_line(error)}") from None
            log.warning("an actor failed to start: %s", _last_line(error))
            return
        self.failed_starts = 0
        self.idle.append(actor)

    def _check_deaths(self, task: Task, deaths: int, error: Exception) -> None:
        if deaths >= DEATHS_A_TASK:
            raise DataError(
                f"{task.label}: killed {deaths} actors ({_last_line(error)}); if memory ran out, give them more"
                " (resources.memory_gib) or use fewer (actors), otherwise check this input; committed work is kept"
            )
        log.warning("%s: its actor died (%s); another actor retries it", task.label, _last_line(error))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

"""Entry of the `preprocess` job: raw documents to a sharded Arrow data set of tokens, by processes, Ray actors or an array."""

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.spec import Engine
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.passes.task import WORK
from ropewalk.jobs.preprocess.config import PreprocessConfig

if TYPE_CHECKING:
    from ropewalk.datapipe.manifest import Manifest

log = logging.getLogger(__name__)


def main(context: JobContext) -> dict[str, object]:
    """Make the data set and its cards, or resume after an earlier attempt.

    Raises StopRequested once a stop is requested; committed work is kept.
    """
    config = context.config(PreprocessConfig)
    session = _session(config, context)
    try:
        from ropewalk.datapipe.passes.pipeline import make_data_set
        from ropewalk.datapipe.passes.progress import Progress

        progress = Progress(
            lambda values: write_json(context.run.progress, values),
            on_slow_tokenizer=lambda reason: context.run.event("slow_tokenizer", reason=reason),
        )
        manifest = make_data_set(config, config.seed, session.run_tasks, progress)
    finally:
        session.close()
    context.fence.check()
    from ropewalk.jobs.models.cards.write import write_data_cards
    from ropewalk.jobs.preprocess.pictures import write_pictures

    write_data_cards(StoragePath(config.output))
    write_pictures(context.run, StoragePath(config.output))
    return _results(manifest, config, context)


def _session(config: PreprocessConfig, context: JobContext) -> "_Array | _Processes | _Actors":
    if config.fanout == "array":
        return _Array(config, context)
    on_one_node = context.run.record.get("engine") == Engine.PROCESS.value
    return _Processes(config, context) if on_one_node else _Actors(config, context)


class _Processes:
    """A pool of processes of this machine, which import their modules while the driver imports its own."""

    def __init__(self, config: PreprocessConfig, context: JobContext) -> None:
        from ropewalk.datapipe.execution.process_pool import ProcessPool

        self.context, output = context, config.output.rstrip("/")
        size = config.actors or _cpus(context)
        self.pool = ProcessPool(output, f"{output}/{WORK}", size, context.stop_requested)
        context.run.event("actors", actors=size)

    def run_tasks(self, tasks: Any) -> Any:
        """See `ropewalk.datapipe.execution.process_pool.ProcessPool.run_tasks`."""
        for task, result in self.pool.run_tasks(tasks):
            self.context.fence.check()
            yield task, result

    def close(self) -> None:
        """End the processes."""
        with self.pool:
            pass
        if self.pool.deaths:
            self.context.run.event("actors_died", deaths=self.pool.deaths)


class _Actors:
    """Ray and a pool of actors, started at the first task: a complete data set needs neither."""

    def __init__(self, config: PreprocessConfig, context: JobContext) -> None:
        self.config, self.context = config, context
        self.pool: Any = None
        self.connected = False

    def run_tasks(self, tasks: Any) -> Any:
        """See `ropewalk.datapipe.execution.ray_actors.ActorPool.run_tasks`."""
        if not tasks:
            return
        if self.pool is None:
            self.connected = _connect(self.context)
            from ropewalk.datapipe.execution.ray_actors import ActorPool

            output = self.config.output.rstrip("/")
            self.pool = ActorPool(output, f"{output}/{WORK}", self.config.actors, self.context.stop_requested)
            self.context.run.event("actors", actors=self.pool.size)
        for task, result in self.pool.run_tasks(tasks):
            self.context.fence.check()  # a process of an earlier attempt must not finish the data set of a later one
            yield task, result

    def close(self) -> None:
        """End the actors and disconnect from Ray."""
        if self.pool is None:
            return
        import ray

        with self.pool:
            pass
        if self.pool.deaths:
            self.context.run.event("actors_died", deaths=self.pool.deaths)
        if self.connected:
            ray.shutdown()


class _Array:
    """A pool of array tasks, started at the first task."""

    def __init__(self, config: PreprocessConfig, context: JobContext) -> None:
        self.config, self.context = config, context
        self.pool: Any = None

    def run_tasks(self, tasks: Any) -> Any:
        """See `ropewalk.datapipe.execution.array_pool.ArrayPool.run_tasks`."""
        if not tasks:
            return
        if self.pool is None:
            from ropewalk.datapipe.execution.array_pool import ArrayPool, choose_executor

            output = self.config.output.rstrip("/")
            run, attempt = self.context.run, self.context.attempt
            executor = choose_executor(self.config.array, f"{run.id}.array-{attempt}", _cpus(self.context))
            folder = run.attempt_dir(attempt) / "array"
            on_submit = partial(run.event, "array", attempt=attempt)
            stop = self.context.stop_requested
            self.pool = ArrayPool((output, f"{output}/{WORK}"), executor, folder, stop=stop, on_submit=on_submit).__enter__()
        for task, result in self.pool.run_tasks(tasks):
            self.context.fence.check()
            yield task, result

    def close(self) -> None:
        """End the array tasks that are still running."""
        if self.pool is None:
            return
        self.pool.__exit__()
        if self.pool.deaths:
            self.context.run.event("elements_died", deaths=self.pool.deaths)


def _cpus(context: JobContext) -> int:
    return int(context.run.record.get("resources", {}).get("cpus") or len(os.sched_getaffinity(0)))


def _connect(context: JobContext) -> bool:
    """Connect to the agent's Ray cluster, or start a small one; return False if this process is already connected."""
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING)
        return True
    from ropewalk.cluster.engines.ray_start import start_local

    start_local(_cpus(context))
    return True


def _results(manifest: "Manifest", config: PreprocessConfig, context: JobContext) -> dict[str, object]:
    damaged = [record.path for record in manifest.inputs if record.damage]
    if damaged:
        log.warning("%d input files are damaged; documents before the damage are kept: %s", len(damaged), ", ".join(damaged[:5]))
        context.run.event("damaged_inputs", files=damaged)
    return {
        "documents": manifest.totals.documents,
        "validation_documents": manifest.totals.validation.documents,
        "vocabulary": manifest.tokenizer.vocabulary,
        "tokens": manifest.totals.tokens,
        "bytes": manifest.totals.bytes,
        "shards": manifest.table.train.shards + manifest.table.validation.shards,
        "rejected": manifest.rejected.total,
        "reasons": manifest.rejected.reasons,
        **({"damaged": damaged} if damaged else {}),
        "output": config.output,
    }

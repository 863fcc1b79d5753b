"""The prepared data set of a run: prepared once by rank 0, and stored where runs with equal keys share it."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ropewalk.cluster.errors import ConfigError, DataError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import ensure_private, read_json, write_json
from ropewalk.cluster.run.names import PREPARED_DATA, PREPARED_FOLDER
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.dataset import is_chat_set
from ropewalk.datapipe.chat.prepare import chat_key, make_chat_set
from ropewalk.datapipe.chat.shards import ChatUnit
from ropewalk.datapipe.chat.tokenizer import chat_files
from ropewalk.datapipe.manifest import MANIFEST_NAME, Manifest, TokenizerRecord, hash_of, read_manifest
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.task import WORK, Task
from ropewalk.datapipe.passes.worker import Worker
from ropewalk.datapipe.tokens.tokenizer import FOLDER, Encoder, TokenizerFiles, take_tokenizer
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.loop.architecture.model_record import TokenizerPlan, find_source_run
from ropewalk.jobs.training.loop.weights.on_main import on_main
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

_ALONE_BYTES = 16 << 20  # of conversations that one process prepares without actors


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A data set of conversations, with its tokenizer and that of the base model."""

    path: str
    manifest: Manifest
    base: TokenizerRecord

    @property
    def tokenizer(self) -> TokenizerPlan:
        return TokenizerPlan(folder=StoragePath(self.path).child(self.manifest.tokenizer.path), record=self.manifest.tokenizer)


def prepared_data(context: JobContext, config: FinetuneConfig, group: Group) -> PreparedData:
    """Return the run's data set; rank 0 prepares it unless it exists. Raises DataError, ConfigError, StopRequested."""
    path = on_main(group, lambda: _path(context, config))
    base = _base_tokenizer(context, config)
    manifest = read_manifest(StoragePath(path))
    if not is_chat_set(manifest):
        raise DataError(f"data: {path}: holds text, not conversations; use pretrain")
    _require_same_tokenizer(base, StoragePath(path).child(FOLDER), path)
    return PreparedData(path=path, manifest=manifest, base=Encoder(base).record())


def _base_tokenizer(context: JobContext, config: FinetuneConfig) -> TokenizerFiles:
    if config.tokenizer is not None:
        return take_tokenizer(config.tokenizer)
    if config.model.path is not None:
        return take_tokenizer(config.model.path)
    assert config.model.run is not None
    if (context.run.path / PREPARED_DATA).is_file() and context.run.model_record.is_file():
        return take_tokenizer(str(context.run.tokenizer))  # the other run may have been deleted
    return take_tokenizer(str(find_source_run(context.run, config.model.run, "model.run").tokenizer))


def _require_same_tokenizer(base: TokenizerFiles, made_with: StoragePath, path: str) -> None:
    """Raise ConfigError unless the data set's tokenizer is the base model's, up to added tokens."""
    model_ids = Tokenizer.from_str(base.files["tokenizer.json"].decode()).get_vocab(with_added_tokens=True)
    data_ids = Tokenizer.from_str(made_with.read("tokenizer.json").decode()).get_vocab(with_added_tokens=True)
    strange = next((word for word, number in model_ids.items() if data_ids.get(word) != number), None)
    if strange is not None:
        raise ConfigError(
            f"data: {path} was prepared with another tokenizer than the model's ({strange!r} is token {model_ids[strange]} of the"
            f" model, {data_ids.get(strange)} there); name the files of the conversations, to prepare them for this model"
        )


def _path(context: JobContext, config: FinetuneConfig) -> str:
    """Rank 0: return the data set's directory, complete."""
    record = context.run.path / PREPARED_DATA
    settled = read_json(record)
    if settled:
        existing = settled["path"] if "://" in settled["path"] else os.path.normpath(context.run.path / settled["path"])
        if _is_complete(existing):
            return str(existing)
    is_prepared = len(config.data) == 1 and _is_complete(config.data[0])
    path = config.data[0] if is_prepared else _prepare(context, config)
    manifest = read_manifest(StoragePath(path))
    if settled and settled["hash"] != manifest.hash:
        raise DataError(
            f"data: the run started with another data set ({settled['hash']}); restore {settled['path']}, or start a new run"
        )
    write_json(record, {"path": _relative_to_run(context, path), "hash": manifest.hash})
    return path


def _is_complete(path: str) -> bool:
    return StoragePath(path).exists(MANIFEST_NAME)


def _relative_to_run(context: JobContext, path: str) -> str:
    """Return a path below the runs' root relative to the run, since other machines may mount the root elsewhere."""
    root = context.run.path.parent
    return os.path.relpath(path, context.run.path) if "://" not in path and Path(path).is_relative_to(root) else path


def _prepare(context: JobContext, config: FinetuneConfig) -> str:
    rules = config.chat
    tokenizer = chat_files(_base_tokenizer(context, config), rules)
    keys = chat_key(config.data, tokenizer, rules, config.validation_fraction)
    name = hash_of(keys).removeprefix("xxh3:")[:16]
    folder = Path(config.prepared) if config.prepared is not None else context.run.path.parent / PREPARED_FOLDER / name
    if config.prepared is None:
        ensure_private(folder.parent)  # it holds conversations of users
    if (folder / MANIFEST_NAME).is_file():
        if read_manifest(StoragePath(folder)).config != keys:
            raise DataError(
                f"prepared: {folder} holds a data set made with other settings; choose another directory, or delete it"
            )
        return str(folder)
    unfinished = folder.with_name(f".{folder.name}.{context.run.id}")  # of this run alone, so that runs cannot interfere
    ensure_private(unfinished)
    output = StoragePath(unfinished)
    progress = Progress(lambda values: write_json(context.run.progress, values, durable=False))
    with _tasks(context, output, config.actors) as run_tasks:
        fraction = config.validation_fraction
        manifest = make_chat_set(
            output, config.data, tokenizer, rules, validation_fraction=fraction, run_tasks=run_tasks, progress=progress
        )
    context.fence.check()
    if not (folder / MANIFEST_NAME).is_file():  # unless another run was quicker
        unfinished.rename(folder)
    else:
        output.remove("")
    _report(context, manifest, str(folder))
    return str(folder)


def _report(context: JobContext, manifest: Manifest, path: str) -> None:
    rejected = manifest.rejected
    context.run.event(
        "prepared", path=path, conversations=manifest.totals.documents, rejected=rejected.total, reasons=rejected.reasons
    )
    if rejected.total:
        log.warning("%d conversations were rejected (%s); see %s/rejected", rejected.total, rejected.reasons, path)


@contextmanager
def _tasks(context: JobContext, output: StoragePath, actors: int | None) -> Iterator[Any]:
    """Provide a function that runs tasks: in this process, or for much data in Ray actors on this machine's cores."""
    urls = (output.url, f"{output.url}/{WORK}")
    pools: list[Any] = []

    def run_tasks(tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        if not pools and len(tasks) > 1 and (wanted := actors or _worthwhile_actors(tasks)):
            pools.extend(_actors(context, urls, wanted))
        if pools:
            yield from pools[0].run_tasks(tasks)
            return
        worker = Worker(*urls)
        for task in tasks:
            if context.stop_requested():
                raise StopRequested("stopped; conversations prepared so far are kept")
            context.fence.check()
            yield task, worker.do(task)

    try:
        yield run_tasks
    finally:
        if pools:
            import ray

            pools[0].__exit__()
            ray.shutdown()


def _worthwhile_actors(tasks: Sequence[Task]) -> int:
    """Return the number of actors that is worth starting Ray for; 0: none."""
    size = sum(task.arguments[0].unit.size for task in tasks if isinstance(task.arguments[0], ChatUnit))
    cores = len(os.sched_getaffinity(0))
    return cores if size > _ALONE_BYTES and cores > 1 else 0


def _actors(context: JobContext, urls: tuple[str, str], actors: int) -> list[Any]:
    """Start a pool of actors; an empty list if Ray does not start, since this process can do the work as well."""
    from ropewalk.cluster.engines.ray_start import start_local
    from ropewalk.datapipe.execution.ray_actors import ActorPool

    try:
        start_local(len(os.sched_getaffinity(0)))
    except Exception as error:  # Ray raises bare exceptions
        log.warning("Ray does not start (%s): preparing the conversations without it", str(error).splitlines()[0])
        return []
    context.run.event("actors", actors=actors)
    return [ActorPool(*urls, actors, context.stop_requested)]

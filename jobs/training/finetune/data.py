"""The prepared data set of a run: found, or made once by rank 0, and kept where runs of equal keys share it."""

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
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.run.names import PREPARED_DATA
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.dataset import is_chat_set
from ropewalk.datapipe.chat.prepare import chat_key, make_chat_set
from ropewalk.datapipe.chat.shards import ChatUnit
from ropewalk.datapipe.chat.tokenizer import chat_files
from ropewalk.datapipe.manifest import MANIFEST_NAME, Manifest, TokenizerRecord, hash_of, read_manifest
from ropewalk.datapipe.passes.plan import WORK
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.worker import Task, Worker
from ropewalk.datapipe.tokens.tokenizer import FOLDER, Encoder, TokenizerFiles, take_tokenizer
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.loop.model_record import TokenizerPlan, find_source_run
from ropewalk.jobs.training.loop.on_main import on_main
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

SHARED = ".prepared"  # beside the runs
_ALONE_BYTES = 16 << 20  # of conversations that one process prepares by itself


@dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A data set of conversations, the tokenizer that made it, and that of the base model."""

    path: str
    manifest: Manifest
    base: TokenizerRecord

    @property
    def tokenizer(self) -> TokenizerPlan:
        """The tokenizer of the data set, which becomes the run's."""
        return TokenizerPlan(place=StoragePath(self.path).child(self.manifest.tokenizer.path), record=self.manifest.tokenizer)


def prepared_data(context: JobContext, config: FinetuneConfig, group: Group) -> PreparedData:
    """The data set that the run learns from; rank 0 makes it if nobody did. Raises DataError, ConfigError, StopRequested."""
    path = on_main(group, lambda: _path(context, config))
    base = _base_tokenizer(context, config)
    manifest = read_manifest(StoragePath(path))
    if not is_chat_set(manifest):
        raise DataError(f"data: {path}: holds text, and no conversations; train on it with pretrain")
    _require_same_words(base, StoragePath(path).child(FOLDER), path)
    return PreparedData(path=path, manifest=manifest, base=Encoder(base).record())


def _base_tokenizer(context: JobContext, config: FinetuneConfig) -> TokenizerFiles:
    if config.tokenizer is not None:
        return take_tokenizer(config.tokenizer)
    if config.model.path is not None:
        return take_tokenizer(config.model.path)
    assert config.model.run is not None
    if (context.run.path / PREPARED_DATA).is_file() and context.run.model_record.is_file():
        return take_tokenizer(str(context.run.tokenizer))  # the other run may be gone by now
    return take_tokenizer(str(find_source_run(context.run, config.model.run, "model.run").tokenizer))


def _require_same_words(base: TokenizerFiles, made_with: StoragePath, path: str) -> None:
    """Raise ConfigError unless the data set's tokenizer is the base model's, added tokens apart."""
    words = Tokenizer.from_str(base.files["tokenizer.json"].decode()).get_vocab(with_added_tokens=True)
    found = Tokenizer.from_str(made_with.read("tokenizer.json").decode()).get_vocab(with_added_tokens=True)
    strange = next((word for word, number in words.items() if found.get(word) != number), None)
    if strange is not None:
        raise ConfigError(
            f"data: {path} was prepared with another tokenizer than the model's ({strange!r} is token {words[strange]} of the"
            f" model, {found.get(strange)} there); give the files of the conversations, so that they are prepared for this model"
        )


def _path(context: JobContext, config: FinetuneConfig) -> str:
    """Rank 0: the data set's directory, which is complete on return."""
    record = context.run.path / PREPARED_DATA
    if (known := read_json(record)) and _is_complete(settled := _from_run(context, known["path"])):
        return settled
    given = len(config.data) == 1 and _is_complete(config.data[0])
    path = config.data[0] if given else _prepare(context, config)
    manifest = read_manifest(StoragePath(path))
    if known and known["hash"] != manifest.hash:
        raise DataError(
            f"data: what the run began with was another data set ({known['hash']}); restore {known['path']}, or start anew"
        )
    write_json(record, {"path": _seen_from_run(context, path), "hash": manifest.hash})
    return path


def _is_complete(path: str) -> bool:
    return StoragePath(path).exists(MANIFEST_NAME)


def _seen_from_run(context: JobContext, path: str) -> str:
    """A path below the runs' root as seen from the run, since other machines may see the root elsewhere."""
    root = context.run.path.parent
    return os.path.relpath(path, context.run.path) if "://" not in path and Path(path).is_relative_to(root) else path


def _from_run(context: JobContext, path: str) -> str:
    return path if "://" in path else os.path.normpath(context.run.path / path)


def _prepare(context: JobContext, config: FinetuneConfig) -> str:
    rules = config.chat
    tokenizer = chat_files(_base_tokenizer(context, config), rules)
    keys = chat_key(config.data, tokenizer, rules, config.validation_fraction)
    name = hash_of(keys).removeprefix("xxh3:")[:16]
    place = Path(config.prepared) if config.prepared is not None else context.run.path.parent / SHARED / name
    if (place / MANIFEST_NAME).is_file():
        if read_manifest(StoragePath(place)).config != keys:
            raise DataError(f"prepared: {place} holds a data set that was made otherwise; choose another directory, or delete it")
        return str(place)
    unfinished = place.with_name(f".{place.name}.{context.run.id}")  # of this run alone, so that runs cannot disturb each other
    output = StoragePath(unfinished)
    progress = Progress(lambda values: write_json(context.run.progress, values, durable=False))
    with _tasks(context, output, config.actors) as run_tasks:
        fraction = config.validation_fraction
        manifest = make_chat_set(
            output, config.data, tokenizer, rules, validation_fraction=fraction, run_tasks=run_tasks, progress=progress
        )
    context.fence.check()
    place.parent.mkdir(parents=True, exist_ok=True)
    if not (place / MANIFEST_NAME).is_file():  # another run was not quicker
        unfinished.rename(place)
    else:
        output.remove("")
    _tell(context, manifest, str(place))
    return str(place)


def _tell(context: JobContext, manifest: Manifest, path: str) -> None:
    rejected = manifest.rejected
    context.run.event(
        "prepared", path=path, conversations=manifest.totals.documents, rejected=rejected.total, reasons=rejected.reasons
    )
    if rejected.total:
        log.warning("%d conversations were rejected (%s); each is listed in %s/rejected", rejected.total, rejected.reasons, path)


@contextmanager
def _tasks(context: JobContext, output: StoragePath, actors: int | None) -> Iterator[Any]:
    """How tasks are run: by this process, or where there is much to do by Ray actors on this machine's cores."""
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
                raise StopRequested("asked to stop; what is prepared stays")
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
    """How many actors are worth the seconds in which Ray starts; 0: none."""
    size = sum(task.arguments[0].unit.size for task in tasks if isinstance(task.arguments[0], ChatUnit))
    cores = len(os.sched_getaffinity(0))
    return cores if size > _ALONE_BYTES and cores > 1 else 0


def _actors(context: JobContext, urls: tuple[str, str], actors: int) -> list[Any]:
    """A pool of actors; none where Ray does not start, for this process can do the work as well."""
    from ropewalk.cluster.engines.ray_start import start_local
    from ropewalk.datapipe.execution.ray_actors import ActorPool

    try:
        start_local(len(os.sched_getaffinity(0)))
    except Exception as error:  # Ray raises bare ones
        log.warning("Ray does not start here (%s): the conversations are prepared without it", str(error).splitlines()[0])
        return []
    context.run.event("actors", actors=actors)
    return [ActorPool(*urls, actors, context.stop_requested)]

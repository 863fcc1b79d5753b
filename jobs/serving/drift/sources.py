"""Texts that a user can name: files, data sets, prompts of a serving run, training data of a run."""

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.config import KIND, ChatConfig
from ropewalk.datapipe.chat.conversation import BadConversationError, conversation_of, messages_of
from ropewalk.datapipe.chat.records import UnitNotes, read_records
from ropewalk.datapipe.inputs.files import MAGIC, list_inputs, plan_units
from ropewalk.datapipe.inputs.readers import ReadStats, read_unit
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.loader.shard_texts import list_shards, texts_at
from ropewalk.datapipe.manifest import MANIFEST_NAME, read_manifest
from ropewalk.datapipe.text.document import Document
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.serving.drift.sample import Sample, draw
from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.feedback.records import FOLDER as CAPTURED
from ropewalk.jobs.serving.feedback.summary import by_conversation

_WINDOW = re.compile(r"^(?P<run>.+)@(?P<first>\d+(?:\.\d+)?[hdw])(?:\.\.(?P<last>\d+(?:\.\d+)?[hdw]))?$")
_SECONDS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}
_UNIT_MIB = 64


def open_sample(ref: str, *, limit: int, seed: int = 0, root: Path | None = None, now: float | None = None) -> Sample:
    """Return at most `limit` texts from a user's reference.

    A reference is a file or glob (.jsonl, .parquet, text; of conversations the first question is taken), a data set's directory,
    a serving run with capture (`RUN`, `RUN@7d`: the last seven days, `RUN@14d..7d`: the seven before), or a run that was trained
    on data. Raises ConfigError, DataError.
    """
    paths = _paths(ref, root)
    if paths is None:
        return _sample_captured(ref, limit, seed, root, now or time.time())
    parts = [_of_path(path, limit, seed) for path in paths]
    total = sum(part.total for part in parts)
    shares = [min(len(part.texts), round(limit * part.total / max(total, limit))) for part in parts]
    texts = tuple(text for part, share in zip(parts, shares, strict=True) for text in draw(part.texts, share, seed)[0])
    if not texts:
        raise DataError(f"{ref} holds no text; records need a key `text`, `prompt` or `messages`")
    return Sample(name=ref, texts=texts, total=total, skipped=sum(p.skipped for p in parts))


def _paths(ref: str, root: Path | None) -> list[str] | None:
    """Return the files and data sets a reference names, directly or as the data of a run; None for a serving run."""
    if "://" in ref or MAGIC.search(ref):
        return [ref]
    path = Path(ref).expanduser()
    if path.exists() and not (path / "run.yaml").is_file():
        return [str(path)]
    if _WINDOW.match(ref):
        return None
    run = _run(ref, root)
    data = _data_of(run)
    if (run.path / CAPTURED).is_dir():
        return None
    if data is None:
        raise ConfigError(
            f"{ref}: {run.id} is a {run.record.get('job')} run without `data`; name a file, a data set or another run"
        )
    return data


def _run(ref: str, root: Path | None) -> RunDir:
    try:
        return find_run(ref) if root is None else RunDir.find(ref, root)
    except ConfigError as error:
        raise ConfigError(f"{ref!r} is neither a file, a data set nor a run: {error}") from None


def _data_of(run: RunDir) -> list[str] | None:
    """Return the data paths in a run's configuration, or None if it has none."""
    data = (run.record.get("config") or {}).get("data")
    if isinstance(data, str):
        return [data]
    if isinstance(data, list) and data:
        return [str(source["path"]) if isinstance(source, Mapping) else str(source) for source in data]
    return None


def _sample_captured(ref: str, limit: int, seed: int, root: Path | None, now: float) -> Sample:
    """Sample the prompts of a serving run: the first prompt and one rating per conversation.

    Turns of one conversation are not independent.
    """
    window = _WINDOW.match(ref)
    run = _run(window["run"] if window else ref, root)
    if not (run.path / CAPTURED).is_dir():
        raise DataError(f"{ref}: {run.id} captured nothing; serve with `capture` switched on, or name a file or a data set")
    since = now - _seconds(window["first"]) if window else None
    until = now - _seconds(window["last"]) if window and window["last"] else None
    ratings: list[tuple[str, int]] = []

    def prompts() -> Iterator[str]:
        conversations: set[str] = set()
        for exchange in exchanges(run.path, since, until):
            if exchange.rating is not None:
                ratings.append((exchange.conversation, exchange.rating))
            if exchange.prompt and exchange.conversation not in conversations:
                conversations.add(exchange.conversation)
                yield exchange.prompt

    texts, total = draw(prompts(), limit, seed)
    if not texts:
        raise DataError(f"{ref}: {run.id} received no requests in that time; choose a longer window")
    return Sample(name=ref, texts=texts, total=total, ratings=tuple(by_conversation(ratings)))


def _seconds(age: str) -> float:
    return float(age[:-1]) * _SECONDS[age[-1]]


def _of_path(path: str, limit: int, seed: int) -> Sample:
    """Sample a data set's directory or files."""
    if MAGIC.search(path) or not StoragePath(path).exists(MANIFEST_NAME):
        return _of_files(path, [path], limit, seed)
    manifest = read_manifest(StoragePath(path))
    if KIND not in manifest.config:
        return _of_shards(path, limit, seed)
    files = [record.path for record in manifest.inputs]
    if any("://" not in file and not Path(file).is_file() for file in files):
        raise DataError(f"{path}: the data set holds only tokens, and its input files are gone; name the input files")
    return _of_files(path, files, limit, seed)


def _of_files(name: str, files: list[str], limit: int, seed: int) -> Sample:
    skipped = 0

    def texts() -> Iterator[str]:
        nonlocal skipped
        for file in files:
            for text in _read(file):
                if text and not text.isspace():
                    yield text
                else:
                    skipped += 1

    sampled, total = draw(texts(), limit, seed)
    return Sample(name=name, texts=sampled, total=total, skipped=skipped)


def _of_shards(path: str, limit: int, seed: int) -> Sample:
    """Sample the training split; only the drawn texts are decoded."""
    shards = list_shards([path], "train")
    drawn, total = draw(((shard, row) for shard in shards for row in range(shard.shard.documents)), limit, seed)
    texts: list[str] = []
    for shard in shards:
        rows = [row for owner, row in drawn if owner is shard]
        texts += texts_at(shard, rows) if rows else []
    return Sample(name=path, texts=tuple(texts), total=total)


def _read(path: str) -> Iterator[str | None]:
    """Yield the text of each record, or the first question of a conversation; None for a record without text."""
    for unit in plan_units(list_inputs([path]), _UNIT_MIB):
        if unit.files[0].kind in {"text", "warc", "warc.gz"}:
            documents = read_unit(unit, ReadRules(), ReadStats())
            yield from (document.text if isinstance(document, Document) else None for document in documents)
        else:
            yield from (text_of(record) if record is not None else None for _, record, _ in read_records(unit, UnitNotes()))


def text_of(record: Mapping[str, Any]) -> str | None:
    """Return the text of a record: `text`, or the first question in it; None if it has neither."""
    if isinstance(record.get("text"), str):
        return str(record["text"])
    try:
        if "prompt" in record:
            messages = messages_of(record["prompt"], "user")
        elif "messages" in record:
            messages = messages_of(record["messages"], "user")
        else:
            messages = conversation_of(record, ChatConfig()).messages
    except BadConversationError:
        return None
    questions = [message["content"] for message in messages if message["role"] == "user" and message["content"]]
    return str(questions[0]) if questions else None

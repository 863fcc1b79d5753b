"""The texts that a user names: files, a data set, what a serving run was asked, what a training run learnt from."""

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
    """At most `limit` texts of what a user names.

    That is: a file or a glob (.jsonl, .parquet, text; of conversations what is asked), a data set's directory, a serving run
    with capture (`RUN`, `RUN@7d`: the last seven days, `RUN@14d..7d`: the seven before), or a run that was trained on data.
    Raises ConfigError, DataError.
    """
    paths = _paths(ref, root)
    if paths is None:
        return _captured(ref, limit, seed, root, now or time.time())
    parts = [_of_path(path, limit, seed) for path in paths]
    total = sum(part.total for part in parts)
    shares = [min(len(part.texts), round(limit * part.total / max(total, limit))) for part in parts]
    texts = tuple(text for part, share in zip(parts, shares, strict=True) for text in draw(part.texts, share, seed)[0])
    if not texts:
        raise DataError(f"{ref}: holds no text; records need a key `text`, `prompt` or `messages`")
    return Sample(name=ref, texts=texts, total=total, skipped=sum(p.skipped for p in parts))


def _paths(ref: str, root: Path | None) -> list[str] | None:
    """The files and data sets that are named, by themselves or as a run's data; None where a serving run is named."""
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
    """What a run's configuration names as its data."""
    data = (run.record.get("config") or {}).get("data")
    if isinstance(data, str):
        return [data]
    if isinstance(data, list) and data:
        return [str(one["path"]) if isinstance(one, Mapping) else str(one) for one in data]
    return None


def _captured(ref: str, limit: int, seed: int, root: Path | None, now: float) -> Sample:
    """What a serving run was asked: the first prompt of each conversation, and one rating, since those of one are not
    independent."""
    window = _WINDOW.match(ref)
    run = _run(window["run"] if window else ref, root)
    if not (run.path / CAPTURED).is_dir():
        raise DataError(f"{ref}: {run.id} captured nothing; serve with `capture` switched on, or name a file or a data set")
    since = now - _seconds(window["first"]) if window else None
    until = now - _seconds(window["last"]) if window and window["last"] else None
    ratings: list[tuple[str, int]] = []

    def prompts() -> Iterator[str]:
        seen: set[str] = set()
        for exchange in exchanges(run.path, since, until):
            if exchange.rating is not None:
                ratings.append((exchange.conversation, exchange.rating))
            if exchange.prompt and exchange.conversation not in seen:
                seen.add(exchange.conversation)
                yield exchange.prompt

    texts, total = draw(prompts(), limit, seed)
    if not texts:
        raise DataError(f"{ref}: nobody asked {run.id} anything in that time; take a longer one")
    return Sample(name=ref, texts=texts, total=total, ratings=tuple(by_conversation(ratings)))


def _seconds(word: str) -> float:
    return float(word[:-1]) * _SECONDS[word[-1]]


def _of_path(path: str, limit: int, seed: int) -> Sample:
    """Texts of a data set's directory or of files."""
    if MAGIC.search(path) or not StoragePath(path).exists(MANIFEST_NAME):
        return _of_files(path, [path], limit, seed)
    manifest = read_manifest(StoragePath(path))
    if KIND not in manifest.config:
        return _of_shards(path, limit, seed)
    files = [record.path for record in manifest.inputs]
    if any("://" not in file and not Path(file).is_file() for file in files):
        raise DataError(f"{path}: its conversations are tokens, and the files that they came from are gone; name those files")
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

    kept, total = draw(texts(), limit, seed)
    return Sample(name=name, texts=kept, total=total, skipped=skipped)


def _of_shards(path: str, limit: int, seed: int) -> Sample:
    """Texts of the training split, of which only those that are drawn are decoded."""
    shards = list_shards([path], "train")
    drawn, total = draw(((shard, row) for shard in shards for row in range(shard.shard.documents)), limit, seed)
    texts: list[str] = []
    for shard in shards:
        rows = [row for one, row in drawn if one is shard]
        texts += texts_at(shard, rows) if rows else []
    return Sample(name=path, texts=tuple(texts), total=total)


def _read(path: str) -> Iterator[str | None]:
    """Every text of some files, of a conversation its first question; None for a record in which there is none."""
    for unit in plan_units(list_inputs([path]), _UNIT_MIB):
        if unit.files[0].kind in {"text", "warc", "warc.gz"}:
            found = read_unit(unit, ReadRules(), ReadStats())
            yield from (one.text if isinstance(one, Document) else None for one in found)
        else:
            yield from (text_of(record) if record is not None else None for _, record, _ in read_records(unit, UnitNotes()))


def text_of(record: Mapping[str, Any]) -> str | None:
    """The text of a record: `text`, or what is asked in it; None: neither."""
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
    asked = [message["content"] for message in messages if message["role"] == "user" and message["content"]]
    return str(asked[0]) if asked else None

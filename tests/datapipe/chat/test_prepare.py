"""Conversations to a data set: the same bytes however often it is killed, everything that is dropped is listed."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from ropewalk.cluster.errors import CorruptShardError, DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat import prepare
from ropewalk.datapipe.chat.config import ChatConfig
from ropewalk.datapipe.chat.dataset import ChatSet
from ropewalk.datapipe.chat.tokenizer import chat_files
from ropewalk.datapipe.manifest import Manifest
from ropewalk.datapipe.passes.plan import WORK
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.worker import Task, Worker
from ropewalk.datapipe.tokens.tokenizer import Encoder, take_tokenizer
from tests.datapipe.chat.tokenizers import make_tokenizer
from tests.jobs.training.finetune.chats import chats


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make(output: Path, inputs: list[Path], tokenizer: Path, *, killed_after: int | None = None, **config: Any) -> Manifest:
    def run_tasks(tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        worker = Worker(str(output), f"{output}/{WORK}")
        for number, task in enumerate(tasks):
            if number == killed_after:
                raise KeyboardInterrupt
            yield task, worker.do(task)

    rules = ChatConfig(**config)
    files = chat_files(take_tokenizer(str(tokenizer)), rules)
    names = [str(path) for path in inputs]
    options: Any = {"validation_fraction": 0.1, "run_tasks": run_tasks, "progress": Progress(lambda values: None)}
    return prepare.make_chat_set(StoragePath(output), names, files, rules, **options)


def lines(records: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def all_of(folder: Path) -> list[tuple[str, list[int], list[bool]]]:
    results = []
    for split in ("train", "validation"):
        part = ChatSet(str(folder), split)  # type: ignore[arg-type]
        results += [(part.name(i), part[i][0].tolist(), part[i][1].tolist()) for i in range(len(part))]
    return sorted(results)


def test_every_kind_of_file_gives_the_same(tokenizer: Path, tmp_path: Path) -> None:
    records = chats(40)
    (tmp_path / "a.jsonl").write_bytes(lines(records))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(records)))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines(records)))
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=7)
    results = []
    for kind in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet"):
        manifest = make(tmp_path / kind, [tmp_path / f"a.{kind}"], tokenizer)
        assert manifest.totals.documents == 40
        assert manifest.totals.validation.documents == 4
        results.append(all_of(tmp_path / kind))
    assert all(result == results[0] for result in results)
    assert manifest.tokenizer == Encoder(take_tokenizer(str(tokenizer))).record()
    table = pa.ipc.open_file(tmp_path / "jsonl" / manifest.shards[0].path).read_all()
    assert table.column_names[:4] == ["id", "source", "tokens", "learnt"]


def test_killed_after_any_task_it_goes_on_to_the_same_bytes(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "UNIT_MIB", 0.004)
    records: list[Any] = [*chats(60), {"messages": []}, {"id": "bad", "prompt": "Q", "completion": ""}]
    (tmp_path / "a.jsonl").write_bytes(lines(records))
    whole = make(tmp_path / "whole", [tmp_path / "a.jsonl"], tokenizer)
    assert len(whole.shards) > 3
    for killed_after in range(4):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "parted", [tmp_path / "a.jsonl"], tokenizer, killed_after=killed_after and 1)
    parted = make(tmp_path / "parted", [tmp_path / "a.jsonl"], tokenizer)
    assert parted == whole
    for shard in whole.shards:
        assert (tmp_path / "parted" / shard.path).read_bytes() == (tmp_path / "whole" / shard.path).read_bytes()
    listed = [json.loads(line) for name in whole.rejected.files for line in (tmp_path / "whole" / name).read_text().splitlines()]
    assert [record["reason"] for record in listed] == ["no_messages", "empty_answer"]
    assert listed[1]["id"] == "bad"
    assert not (tmp_path / "whole" / WORK).exists()


def test_what_cannot_be_read_is_counted(tokenizer: Path, tmp_path: Path) -> None:
    good = lines(chats(20))
    bad = [b'{"messages": 3}\n', b"{broken\n", b"[1]\n", b'{"x": "\xff"}\n', b"\n", b'{"text": "plain"}\n']
    (tmp_path / "a.jsonl").write_bytes(good + b"".join(bad))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(chats(20, seed=1)))[:-20])
    manifest = make(tmp_path / "set", [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"], tokenizer)
    expected = {"no_messages": 1, "invalid_json": 1, "not_an_object": 1, "invalid_utf8": 1, "not_a_conversation": 1}
    reasons = dict(manifest.rejected.reasons)
    assert reasons.pop("damaged_file") == 1
    assert reasons.items() >= expected.items()
    assert 20 < manifest.totals.documents <= 40, "what could be read of a damaged file is kept"
    assert manifest.inputs[1].damage is not None


def test_nothing_to_learn_from_is_an_error_that_says_why(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"messages": [{"role": "user", "content": "Q"}]}] * 3))
    with pytest.raises(DataError, match=r"no conversation is left .*; rejected: no_assistant_turn 3 \(such as a.jsonl:1\)"):
        make(tmp_path / "set", [tmp_path / "a.jsonl"], tokenizer)
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match="is plain text, not conversations"):
        make(tmp_path / "other", [tmp_path / "a.txt"], tokenizer)


def test_equal_conversations_are_on_one_side_of_the_split(tokenizer: Path, tmp_path: Path) -> None:
    records = [conversation for conversation in chats(30) for _ in range(3)]
    (tmp_path / "a.jsonl").write_bytes(lines(records))
    make(tmp_path / "set", [tmp_path / "a.jsonl"], tokenizer)
    sides = [ChatSet(str(tmp_path / "set"), split) for split in ("train", "validation")]  # type: ignore[arg-type]
    texts = [{side[i][0].tobytes() for i in range(len(side))} for side in sides]
    assert texts[1]
    assert not texts[0] & texts[1]
    (tmp_path / "b.jsonl").write_bytes(lines(chats(1) * 8))
    manifest = make(tmp_path / "same", [tmp_path / "b.jsonl"], tokenizer)
    assert (manifest.totals.train.documents, manifest.totals.validation.documents) == (8, 0)


def test_a_damaged_shard_is_named(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(chats(20)))
    manifest = make(tmp_path / "set", [tmp_path / "a.jsonl"], tokenizer)
    path = tmp_path / "set" / manifest.shards[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptShardError, match="does not match its checksum"):
        ChatSet(str(tmp_path / "set"), "train")


def test_chatml_brings_its_tokens(tmp_path: Path) -> None:
    bare = make_tokenizer(tmp_path / "bare", template=None)
    before = Encoder(take_tokenizer(str(bare))).record()
    (tmp_path / "a.jsonl").write_bytes(lines(chats(20)))
    manifest = make(tmp_path / "set", [tmp_path / "a.jsonl"], bare, template="chatml", added_tokens=["<|tool|>"])
    assert manifest.tokenizer.vocabulary == before.vocabulary + 3
    assert manifest.tokenizer.end_of_document == before.vocabulary + 1, "the end of a turn ends what is generated"
    train = ChatSet(str(tmp_path / "set"), "train")
    ids, learnt = train[0]
    assert ids[np.flatnonzero(learnt)[-1]] == manifest.tokenizer.end_of_document
    plain = make(tmp_path / "plain", [tmp_path / "a.jsonl"], bare)
    assert plain.tokenizer.vocabulary == before.vocabulary
    assert (tmp_path / "plain/tokenizer/chat_template.jinja").is_file(), "the template goes where the model goes"

"""A data set holds every kept document once, in order, as its manifest says, and opens in the tools that people use."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.shard_cache import read_shards
from ropewalk.datapipe.manifest import checksum_of_file, read_manifest
from tests.fakes.documents import contents, make, rejected, rows, some_documents, write_lines


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", some_documents(300))


def test_every_kept_document_is_there_once_and_decodes(tmp_path: Path, source: Path) -> None:
    manifest = make(source, tmp_path / "out", shard_mib=0.01, unit_mib=0.02)
    tokenizer = Tokenizer.from_file(str(tmp_path / "out/tokenizer/tokenizer.json"))
    texts = {d["id"]: d["text"] for d in some_documents(300)}
    documents = rows(tmp_path / "out")
    dropped = [r["id"] for r in rejected(tmp_path / "out")]
    assert sorted([r["id"] for r in documents] + dropped) == sorted(texts)
    for row in documents:
        *tokens, end = row["tokens"]
        assert (tokenizer.decode(tokens), end) == (texts[row["id"]], manifest.tokenizer.end_of_document)
    assert manifest.totals.documents == len(documents)
    assert manifest.totals.bytes == sum(len(texts[r["id"]].encode()) for r in documents)
    assert manifest.table.train.shards > 3
    table = read_shards(StoragePath(tmp_path / "out"), manifest)
    for split in ("train", "validation"):
        order = [int(r["id"].rpartition("-")[2]) for s in table.of_split(split) for r in _rows(tmp_path / "out" / s.path)]
        assert order == sorted(order)


def _rows(path: Path) -> list[dict[str, str]]:
    return list(pa.ipc.open_file(path.read_bytes()).read_all().to_pylist())


def test_a_shard_is_one_stream_of_tokens_and_matches_its_manifest(tmp_path: Path, source: Path) -> None:
    make(source, tmp_path / "out", shard_mib=0.02)
    manifest = read_manifest(StoragePath(tmp_path / "out"))
    for shard in manifest.shards:
        path = tmp_path / "out" / shard.path
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        assert reader.num_record_batches == 1
        flat = reader.get_batch(0).column("tokens").values.to_numpy(zero_copy_only=True)
        assert (len(flat), flat.dtype) == (shard.tokens, np.dtype(manifest.token_type))
        assert (flat == manifest.tokenizer.end_of_document).sum() == shard.documents
        assert (checksum_of_file(StoragePath(tmp_path / "out"), shard.path), path.stat().st_size) == (shard.checksum, shard.size)
        start = shard.tokens_at
        assert np.array_equal(np.frombuffer(path.read_bytes(), flat.dtype, len(flat), start), flat)
    assert not list((tmp_path / "out").rglob(".*"))


def test_datasets_opens_the_shards(tmp_path: Path, source: Path) -> None:
    from datasets import load_dataset

    make(source, tmp_path / "out", shard_mib=0.02)
    files = [str(p) for p in sorted((tmp_path / "out/shards").iterdir())]
    opened = load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert list(opened["id"]) == [r["id"] for f in files for r in _rows(Path(f))]


def test_the_bytes_do_not_depend_on_how_the_text_was_packed(tmp_path: Path) -> None:
    from tests.datapipe.test_readers import write_as

    tokens = {}
    for ending in (".jsonl", ".jsonl.zst", ".parquet"):
        folder = tmp_path / ending
        folder.mkdir()
        make(write_as(folder, ending, some_documents(100)), folder / "out")
        created = contents(folder / "out").items()
        # what was rejected names its file
        tokens[ending] = {name: data for name, data in created if name.startswith(("shards/", "validation/"))}
        assert tokens[ending]
    assert tokens[".jsonl"] == tokens[".jsonl.zst"] == tokens[".parquet"]


def test_a_second_call_finds_the_data_set_or_says_what_differs(tmp_path: Path, source: Path) -> None:
    first = make(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert make(source, tmp_path / "out") == first
    assert contents(tmp_path / "out") == before
    with pytest.raises(
        DataError, match=r"already holds a data set made with other settings: min_chars was 1, is 5; choose another output"
    ):
        make(source, tmp_path / "out", min_chars=5)
    source.write_text('{"text": "something else"}\n')
    with pytest.raises(DataError, match=r"in\.jsonl changed since"):
        make(source, tmp_path / "out")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_that_was_only_touched_is_no_other_and_one_of_the_same_size_is(tmp_path: Path, source: Path, scheme: str) -> None:
    first = make(f"{scheme}{source}", tmp_path / "out")
    later = time.time() + 100
    os.utime(source, (later, later))
    assert make(f"{scheme}{source}", tmp_path / "out") == first
    source.write_bytes(source.read_bytes().replace(b"o", b"a"))
    os.utime(source, (later, later))
    with pytest.raises(DataError, match=r"in\.jsonl changed since"):
        make(f"{scheme}{source}", tmp_path / "out")


def test_another_tokenizer_at_the_same_path_is_another_data_set(tmp_path: Path, source: Path) -> None:
    for name, size in (("a", 300), ("b", 310)):
        make(source, tmp_path / name, tokenizer={"train": size})
    shutil.copytree(tmp_path / "a/tokenizer", tmp_path / "mine")
    keys = {"tokenizer": {"path": str(tmp_path / "mine")}}
    first = make(source, tmp_path / "out", **keys)
    assert make(source, tmp_path / "out", **keys) == first
    shutil.copytree(tmp_path / "b/tokenizer", tmp_path / "mine", dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"the tokenizer at .*/mine was xxh3:.*, is xxh3:"):
        make(source, tmp_path / "out", **keys)


def test_a_half_finished_data_set_of_another_plan_is_left_alone(tmp_path: Path, source: Path) -> None:
    make(source, tmp_path / "out")
    (tmp_path / "half/.work").mkdir(parents=True)
    (tmp_path / "half/.work/plan.json").write_text('{"config": {"seed": 9}, "inputs": {}}')
    with pytest.raises(DataError, match=r"unfinished data set made with other settings.*delete the directory"):
        make(source, tmp_path / "half")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(DataError, match=r"holds 'thesis\.tex'"):
        make(source, tmp_path / "full")


def test_the_output_may_not_lie_in_the_input(tmp_path: Path, source: Path) -> None:
    from ropewalk.cluster.errors import ConfigError

    with pytest.raises(ConfigError, match="is inside the input"):
        make(tmp_path, tmp_path / "out")


def test_damage_is_told_in_the_manifest(tmp_path: Path) -> None:
    import zstandard

    lines = write_lines(tmp_path / "raw", some_documents(3000)).read_bytes()
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.compress(lines)[:-5000])
    manifest = make(tmp_path / "cut.jsonl.zst", tmp_path / "out")
    assert manifest.inputs[0].damage == "zstd: the file ends in the middle of a frame"
    assert manifest.rejected.reasons["damaged_file"] == 1
    assert {"id": "cut.jsonl.zst", "source": "cut.jsonl.zst", "reason": "damaged_file"} in rejected(tmp_path / "out")
    assert manifest.totals.documents > 1000

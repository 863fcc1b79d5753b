"""One large compressed file is read by one and worked on by all, to the same data set."""

import gzip
from pathlib import Path

import pytest
import zstandard

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.inputs.files import list_inputs
from ropewalk.datapipe.inputs.split import files_to_split, piece_name, split_file
from tests.fakes.documents import make, rejected, rows, some_documents, write_lines


def in_frames(data: bytes) -> bytes:
    return b"".join(zstandard.compress(data[at : at + 3000]) for at in range(0, len(data), 3000))


PACK = {"gz": gzip.compress, "zst": in_frames}


def packed(folder: Path, ending: str) -> Path:
    lines = [
        *some_documents(60),
        b"{broken",
        b"",
        {"id": "long", "text": "x" * 9000},
        {"text": "without an id"},
        *some_documents(60, seed=1),
    ]
    data = write_lines(folder / "in.jsonl", lines).read_bytes()
    path = folder / f"in.jsonl.{ending}"
    path.write_bytes(PACK[ending](data))
    return path


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_split_file_makes_the_data_set_of_a_whole_one(tmp_path: Path, ending: str) -> None:
    source = packed(tmp_path, ending)
    keys = {"tokenizer": {"train": 300}}
    whole = make(source, tmp_path / "whole", **keys)
    cut = make(source, tmp_path / "cut", unit_mib=0.005, **keys)
    for name in ("id", "source"):
        assert [row[name] for row in rows(tmp_path / "cut")] == [row[name] for row in rows(tmp_path / "whole")]
    dropped = [sorted(map(str, rejected(tmp_path / name, places=True))) for name in ("cut", "whole")]
    assert dropped[0] == dropped[1]
    assert {**cut.inputs[0].model_dump(), "checksum": ""} == {**whole.inputs[0].model_dump(), "checksum": ""}
    assert cut.inputs[0].checksum.startswith("xxh3-pieces:")


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_cut_stream_gives_what_came_before_the_cut(tmp_path: Path, ending: str) -> None:
    source = packed(tmp_path, ending)
    source.write_bytes(source.read_bytes()[:-40])
    whole = make(source, tmp_path / "whole")
    cut = make(source, tmp_path / "cut", unit_mib=0.005)
    assert cut.inputs[0].damage == whole.inputs[0].damage is not None
    assert [row["id"] for row in rows(tmp_path / "cut")] == [row["id"] for row in rows(tmp_path / "whole")]
    assert cut.rejected.reasons == whole.rejected.reasons


def test_pieces_hold_every_line_once(tmp_path: Path) -> None:
    source = packed(tmp_path, "zst")
    (file,) = list_inputs([str(source)])
    assert files_to_split([file], 64) == []
    work = StoragePath(tmp_path / "work")
    result = split_file(file, 0.002, work)
    pieces = [zstandard.decompress(work.read(piece_name(file.url, n)), 1 << 20) for n in range(len(result.sizes))]
    assert len(pieces) > 10
    assert b"".join(pieces) == (tmp_path / "in.jsonl").read_bytes()
    assert all(piece.endswith(b"\n") for piece in pieces)

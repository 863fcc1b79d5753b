"""Every format gives the same documents; whatever is bad is a recorded rejection or an error that names it."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from ropewalk.cluster.errors import DataError
from ropewalk.datapipe.inputs.files import InputFile, list_inputs, plan_units, unit_size_mib
from ropewalk.datapipe.inputs.lines import TOO_LONG, split_lines
from ropewalk.datapipe.inputs.readers import ReadStats, read_unit
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.text.document import Document, Rejection
from tests.fakes.documents import some_documents, write_lines


def read(source: Path, unit_mib: float = 64, **rules: Any) -> tuple[list[Document], list[Rejection], list[ReadStats]]:
    documents, rejections, tallies = [], [], []
    for unit in plan_units(list_inputs([str(source)]), unit_mib):
        stats = ReadStats()
        for record in read_unit(unit, ReadRules(**rules), stats):
            (documents if isinstance(record, Document) else rejections).append(record)
        tallies.append(stats)
    return documents, rejections, tallies


def write_as(folder: Path, ending: str, records: list[dict[str, Any]]) -> Path:
    lines = write_lines(folder / "raw", records).read_bytes()
    path = folder / f"docs{ending}"
    if ending == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path, row_group_size=7)
    elif ending == ".jsonl.gz":
        half = lines.index(b"\n", len(lines) // 2) + 1
        path.write_bytes(gzip.compress(lines[:half]) + gzip.compress(lines[half:]))  # two members, as `cat a.gz b.gz` makes
    elif ending == ".jsonl.zst":
        path.write_bytes(zstandard.compress(lines[:1000]) + zstandard.compress(lines[1000:]))
    else:
        path.write_bytes(lines)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("unit_mib", [64, 0.001])
def test_every_format_gives_the_same_documents(tmp_path: Path, ending: str, unit_mib: float) -> None:
    records = some_documents(60)
    documents, rejections, _ = read(write_as(tmp_path, ending, records), unit_mib)
    assert [{"id": d.id, "text": d.text, "source": d.source} for d in documents] == records
    assert not rejections


def test_text_files_are_documents_named_by_their_path(tmp_path: Path) -> None:
    for name in ("b/two.md", "a.txt", "b/one.py", "empty.rst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name.startswith("empty") else f"this is {name}")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    documents, rejections, _ = read(tmp_path)
    assert [(d.id, d.source, d.text) for d in documents] == [(n, n, f"this is {n}") for n in ("a.txt", "b/one.py", "b/two.md")]
    assert [(r.id, r.reason) for r in rejections] == [("bad.txt", "invalid_utf8")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "x", "text": "cut sho', "invalid_json"),
        (b'{"id": "x", "text": "caf\xe9"}', "invalid_utf8"),
        (b'{"id": "x", "text": null}', "null_text"),
        (b'{"id": "x", "text": 17}', "text_not_string"),
        (b'{"id": "x", "body": "words"}', "missing_text"),
        (b'["words"]', "not_an_object"),
        (b'{"id": "x", "text": " \\n "}', "empty"),
        (b'{"id": "x", "text": "abc"}', "too_short"),
        (b'{"id": "x", "text": "abcdefghijklmnopq"}', "too_long"),
        (b'{"id": "x", "text": "' + b"a" * 2000 + b'"}', "line_too_long"),
        (b"[" * 5000, "line_too_long"),
        (b"[" * 900, "invalid_json"),
        (b'{"id": "x", "text": "\\ud800 alone"}', "invalid_json"),
    ],
)
def test_a_bad_line_is_rejected_and_its_neighbours_are_not(tmp_path: Path, line: bytes, reason: str) -> None:
    good = {"id": "good", "text": "some words"}
    path = write_lines(tmp_path / "docs.jsonl", [good, line, b"", good])
    documents, rejections, _ = read(path, min_chars=4, max_chars=16, max_line_mib=0.001)
    assert [r.reason for r in rejections] == [reason]
    assert rejections[0].line == 2
    assert [d.line for d in documents] == [1, 4]


def test_marks_of_other_systems_are_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}')
    assert [d.text for d in read(path)[0]] == ["one", "two"]


@pytest.mark.parametrize("raw", [3, 2.5])
def test_numbers_are_ids_and_other_things_are_none(tmp_path: Path, raw: float) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"id": v, "text": "words"} for v in (raw, True, None, ["x"], "")])
    assert [d.id for d in read(path)[0]] == [str(raw), None, None, None, None]


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_stream_keeps_what_came_before(tmp_path: Path, ending: str, harm: str) -> None:
    records = some_documents(3000)
    path = write_as(tmp_path, ending, records)
    data = bytearray(path.read_bytes())
    if harm == "truncate":
        del data[len(data) * 2 // 3 :]
    else:
        data[len(data) * 2 // 3] ^= 0xFF
        del data[-1:]  # a flip in a literal decodes: then the end is what is wrong
    path.write_bytes(data)
    documents, rejections, tallies = read(path)
    damaged = [r for r in rejections if r.reason == "damaged_file"]
    assert len(damaged) == 1
    assert damaged[0].id == path.name
    assert tallies[0].damage
    assert [d.text for d in documents][:500] == [r["text"] for r in records][:500]


@pytest.mark.parametrize("harm", ["truncate", "garbage", "page"])
def test_a_damaged_parquet_is_named(tmp_path: Path, harm: str) -> None:
    path = write_as(tmp_path, ".parquet", some_documents(200))
    data = bytearray(path.read_bytes())
    if harm == "truncate":
        del data[len(data) // 2 :]
    elif harm == "garbage":
        data[:] = b"not a parquet file at all"
    else:
        data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    path.write_bytes(data)
    _, rejections, tallies = read(path)
    assert [r.reason for r in rejections if r.reason == "damaged_file"] == ["damaged_file"]
    assert tallies[0].damage[0].startswith("parquet: ")


def test_a_parquet_with_bad_cells_loses_those_alone(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", None, b"also fine"], pa.binary())
    text = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0], raw.null_count)
    parquet.write_table(pa.table({"id": [1, 2, 3, 4], "text": text}), tmp_path / "d.parquet")
    documents, rejections, _ = read(tmp_path / "d.parquet")
    assert [(d.id, d.text) for d in documents] == [("1", "fine"), ("4", "also fine")]
    assert [r.reason for r in rejections] == ["invalid_utf8", "null_text"]


def test_a_cell_beyond_the_limit_of_a_line_is_rejected(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["words", "a" * 2000]}), tmp_path / "d.parquet")
    documents, rejections, _ = read(tmp_path / "d.parquet", max_line_mib=0.001)
    assert ([d.text for d in documents], [r.reason for r in rejections]) == (["words"], ["text_too_large"])


def test_a_parquet_without_the_text_column_is_the_users_mistake(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": ["a"], "body": ["words"]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"no column 'text'; set text_key to one of id, body"):
        read(tmp_path / "d.parquet")
    assert [d.text for d in read(tmp_path / "d.parquet", text_key="body")[0]] == ["words"]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.parquet", "d.txt"])
def test_an_empty_file_is_no_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    documents, rejections, tallies = read(tmp_path / name)
    assert not documents
    assert not rejections
    assert len(tallies[0].checksums) == 1


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst", ".jsonl.gz"])
def test_a_line_of_100_mb_is_never_held(tmp_path: Path, ending: str) -> None:
    line = b'{"text": "' + b"a" * 100_000_000 + b'"}\n{"text": "behind it"}\n'
    pack = {".jsonl": bytes, ".jsonl.zst": zstandard.compress, ".jsonl.gz": lambda d: gzip.compress(d, 1)}[ending]
    path = tmp_path / f"d{ending}"
    path.write_bytes(pack(line))
    del line
    tracemalloc.start()
    documents, rejections, _ = read(path, max_line_mib=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ([d.text for d in documents], [r.reason for r in rejections]) == (["behind it"], ["line_too_long"])
    assert peak < 80e6  # one KiB of zstd may expand to 32 MiB, held twice while it is handed on


def test_a_wrong_input_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    (tmp_path / "secret.jsonl").touch()
    with pytest.raises(DataError, match=r"absent\*': matches no file"):
        list_inputs([str(tmp_path / "absent*")])
    with pytest.raises(DataError, match=r"picture\.png.*narrow the pattern"):
        list_inputs([str(tmp_path)])
    with pytest.raises(DataError, match="matches no file"):
        list_inputs([str(tmp_path / "nowhere")])


def test_globs_directories_and_files_are_listed_once_in_order(tmp_path: Path) -> None:
    for name in ("a/x.jsonl", "a/b/y.jsonl", "z.jsonl", "a[1].jsonl", ".hidden.jsonl"):
        write_lines(tmp_path / name, [{"text": name}])
    everything = [str(tmp_path / n) for n in ("a/b/y.jsonl", "a/x.jsonl", "a[1].jsonl", "z.jsonl")]
    assert [f.url for f in list_inputs([str(tmp_path), str(tmp_path / "z.jsonl")])] == everything
    assert [f.name for f in list_inputs([str(tmp_path / "a/**/*.jsonl")])] == ["b/y.jsonl", "x.jsonl"]
    assert [f.name for f in list_inputs([str(tmp_path / "a[1].jsonl")])] == ["a[1].jsonl"]


def test_files_of_one_name_are_named_from_the_folder_that_all_patterns_share(tmp_path: Path) -> None:
    for name in ("set/a/x.jsonl", "set/b/x.jsonl", "set/b/deep/y.jsonl"):
        write_lines(tmp_path / name, [{"text": name}])
    patterns = [str(tmp_path / "set/a/*.jsonl"), str(tmp_path / "set/b/**/*.jsonl")]
    assert [f.name for f in list_inputs(patterns)] == ["a/x.jsonl", "b/deep/y.jsonl", "b/x.jsonl"]
    assert [f.name for f in list_inputs(patterns[1:])] == ["deep/y.jsonl", "x.jsonl"]


def test_links_to_folders_are_gone_through(tmp_path: Path) -> None:
    write_lines(tmp_path / "elsewhere/deep/x.jsonl", [{"text": "x"}])
    corpus = tmp_path / "corpus"
    write_lines(corpus / "own/y.jsonl", [{"text": "y"}])
    (corpus / "linked").symlink_to("../elsewhere")
    (corpus / "own/z.jsonl").symlink_to("../../elsewhere/deep/x.jsonl")
    (corpus / "lost+found").mkdir()
    names = ["linked/deep/x.jsonl", "own/y.jsonl", "own/z.jsonl"]
    assert [f.name for f in list_inputs([str(corpus)])] == names
    assert [f.name for f in list_inputs([str(corpus / "**/*.jsonl")])] == names
    assert [f.name for f in list_inputs([str(corpus / "l*/*/*.jsonl")])] == names[:1]
    (corpus / "own/above").symlink_to("..")
    with pytest.raises(DataError, match=r"own/above: links to a directory above itself"):
        list_inputs([str(corpus)])


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl"])
@pytest.mark.parametrize("folders", [2, 3])
def test_links_that_lead_in_a_circle_are_refused(tmp_path: Path, folders: int, pattern: str) -> None:
    """No folder lies in the one that it links to, and yet each is found within itself."""
    for number in range(folders):
        write_lines(tmp_path / f"docs/v{number}/x.jsonl", [{"text": str(number)}])
        for other in set(range(folders)) - {number}:
            (tmp_path / f"docs/v{number}/beside-{other}").symlink_to(f"../v{other}")
    with pytest.raises(DataError, match=r"docs/v\d/beside-\d/beside-\d: links to a directory above itself"):
        list_inputs([f"{tmp_path / 'docs'}{pattern}"])


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl", "/*/*/*.jsonl"])
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    write_lines(tmp_path / "a/b/x.jsonl", [{"text": "x"}])
    write_lines(tmp_path / "a/private/y.jsonl", [{"text": "y"}])
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    with pytest.raises(DataError, match=r"a/private: Permission denied; check its permissions"):
        list_inputs([f"{tmp_path}{pattern}"])


def test_a_file_that_changes_under_the_reader_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"text": "words"}])
    units = plan_units(list_inputs([str(path)]), 64)
    path.write_text(json.dumps({"text": "other, longer words"}))
    with pytest.raises(DataError, match="its size changed"):
        list(read_unit(units[0], ReadRules(), ReadStats()))
    path.unlink()
    with pytest.raises(DataError, match="is gone"):
        list(read_unit(units[0], ReadRules(), ReadStats()))


@pytest.mark.parametrize(
    ("mib", "unit_mib", "units"), [(1, None, 1), (100, None, 25), (1024, None, 64), (8192, None, 128), (100, 50, 2)]
)
def test_a_small_input_has_units_for_many_processes(mib: int, unit_mib: float | None, units: int) -> None:
    file = InputFile(url="a.jsonl", name="a.jsonl", size=mib << 20, kind="lines")
    assert len(plan_units([file], unit_size_mib([file], unit_mib))) == units


@settings(max_examples=300, deadline=None)
@given(
    data=st.lists(st.sampled_from([b"a", b"bcd", b"\n", b"\n\n", b"efghijkl"]), max_size=30),
    chunk=st.integers(1, 9),
    unit=st.integers(1, 20),
)
def test_ranges_share_the_lines_out_exactly(data: list[bytes], chunk: int, unit: int) -> None:
    raw, limit = b"".join(data), 10
    whole = raw.split(b"\n")
    whole = whole[:-1] if whole[-1] == b"" else whole
    expected = [line if len(line) <= limit else TOO_LONG for line in whole]
    results: list[bytes] = []
    for start in range(0, len(raw), unit):
        observed = raw[max(start - 1, 0) :]
        chunks = [observed[i : i + chunk] for i in range(0, len(observed), chunk)]
        results += split_lines(chunks, limit, start, min(start + unit, len(raw)))
    assert results == expected

"""The first of equal texts stays, ids are unique, and the split of a document follows from its id alone."""

from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.cluster.errors import DataError
from ropewalk.datapipe.dedup.equal import repeats
from ropewalk.datapipe.inputs.text_hash import normal_form, text_hashes
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.datapipe.tokens.shards import Rows
from tests.fakes.documents import make, rejected, rows, some_documents, write_lines


@pytest.mark.parametrize(
    ("first", "other", "same"),
    [
        ("Rope  walk\n", "rope walk", True),
        ("\ufb01bre \u00c5", "FIBRE \u0041\u030a", True),  # a ligature, and A with a ring in two parts
        ("rope walk", "ropewalk", False),
        ("rope walk.", "rope walk", False),
    ],
)
def test_texts_are_equal_up_to_case_space_and_form(first: str, other: str, same: bool) -> None:
    assert (normal_form(first) == normal_form(other)) is same


def test_the_first_of_equal_texts_stays_across_files(tmp_path: Path) -> None:
    write_lines(tmp_path / "in/b.jsonl", [{"id": "late", "text": "the rope"}, {"id": "other", "text": "a strand"}])
    write_lines(tmp_path / "in/a.jsonl", [{"id": "early", "text": "The  Rope"}, {"text": "a STRAND"}])
    manifest = make(tmp_path / "in", tmp_path / "out", validation_fraction=0)
    assert [r["id"] for r in rows(tmp_path / "out")] == ["early", "a.jsonl:2"]
    assert rejected(tmp_path / "out") == [
        {"id": "late", "source": "b.jsonl", "reason": "duplicate"},
        {"id": "other", "source": "b.jsonl", "reason": "duplicate"},
    ]
    assert manifest.rejected.reasons == {"duplicate": 2}
    assert [(i.documents, i.rejected) for i in manifest.inputs] == [(2, 0), (0, 2)]


def test_an_id_that_is_taken_is_renamed_by_its_text(tmp_path: Path) -> None:
    records = [{"id": "x", "text": t} for t in ("one", "two", "three", "ONE")]
    manifest = make(write_lines(tmp_path / "in.jsonl", records), tmp_path / "out", validation_fraction=0)
    names = [r["id"] for r in rows(tmp_path / "out")]
    assert names[0] == "x"
    assert len(set(names)) == 3
    assert all(n.startswith("x~") and len(n) == 10 for n in names[1:])
    assert manifest.renamed_ids == 2
    turned = make(
        write_lines(tmp_path / "turned.jsonl", records[:1] + records[2:0:-1]), tmp_path / "turned", validation_fraction=0
    )
    assert turned.totals.documents == 3
    assert {r["id"] for r in rows(tmp_path / "turned")} == set(names)


def test_ids_of_unnamed_documents_do_not_depend_on_how_the_file_is_cut(tmp_path: Path) -> None:
    records = [{"text": d["text"]} for d in some_documents(200)]
    source = write_lines(tmp_path / "in.jsonl", [*records[:50], b"", b"not json", *records[50:]])
    make(source, tmp_path / "whole", unit_mib=64)
    make(source, tmp_path / "cut", unit_mib=0.002)
    names = [r["id"] for r in rows(tmp_path / "whole")]
    assert names == [r["id"] for r in rows(tmp_path / "cut")]
    assert {"in.jsonl:1", "in.jsonl:53"} <= set(names)
    dropped = [sorted(map(str, rejected(tmp_path / output))) for output in ("whole", "cut")]
    assert dropped[0] == dropped[1]
    assert {"id": "in.jsonl:52", "source": "in.jsonl", "reason": "invalid_json"} in rejected(tmp_path / "cut")


def test_a_documents_split_is_its_own_affair(tmp_path: Path) -> None:
    records = some_documents(400)
    make(write_lines(tmp_path / "all.jsonl", records), tmp_path / "all", validation_fraction=0.2)
    make(write_lines(tmp_path / "some.jsonl", records[::3]), tmp_path / "some", validation_fraction=0.2)

    def held_out(output: Path) -> set[str]:
        return {r["id"] for r in rows(output)} - {r["id"] for r in rows(output)[: -_count(output)]}

    both = {r["id"] for r in rows(tmp_path / "all")} & {r["id"] for r in rows(tmp_path / "some")}
    assert held_out(tmp_path / "some") & both == held_out(tmp_path / "all") & both
    assert 0.1 < len(held_out(tmp_path / "all")) / len(rows(tmp_path / "all")) < 0.3


def _count(output: Path) -> int:
    from ropewalk.cluster.storage import StoragePath
    from ropewalk.datapipe.manifest import read_manifest

    return read_manifest(StoragePath(output)).totals.validation.documents


def test_nothing_left_is_an_error_that_counts_the_reasons(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"body": "x"}, {"body": "y"}, {"text": None}])
    with pytest.raises(DataError, match="missing_text 2, null_text 1; check text_key"):
        make(source, tmp_path / "out")
    source = write_lines(tmp_path / "in.jsonl", [{"body": "x", "id": 1}, {"title": "y"}])
    with pytest.raises(DataError, match=r"text_key: records of .* have no key 'text'; set text_key to one of body, id, title"):
        make(source, tmp_path / "out2")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=50))
def test_repeats_are_those_seen_before(values: list[tuple[int, int]]) -> None:
    expected = [v in values[:i] for i, v in enumerate(values)]
    assert repeats(np.array(values, dtype=np.uint64).reshape(-1, 2)).tolist() == expected


@given(st.lists(st.text(alphabet=st.characters(max_codepoint=300), max_size=40), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_hashes_of_a_batch_are_those_of_the_normal_forms(texts: list[str]) -> None:
    assert text_hashes(DocumentBatch.of_texts(texts)) == [xxhash.xxh3_128_digest(normal_form(text)) for text in texts]


@pytest.mark.soak(
    "two data sets of many units; test_repeats_are_those_seen_before, test_the_first_of_equal_texts_stays_across_files and"
    " test_an_id_that_is_taken_is_renamed_by_its_text have few"
)
def test_how_many_parts_hashes_are_compared_in_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal texts, equal ids, documents without an id and one whose id is such a document's name, over many units."""
    records = some_documents(300, num_words=20)
    others = [{**d, "text": f"{d['text']} {n % 2}"} for n, d in enumerate(records[:60] * 3)]
    nameless = [{"text": d["text"] + " nameless"} for d in records[100:150]]
    source = write_lines(tmp_path / "in.jsonl", [*records, *others, *nameless, {"id": "in.jsonl:481", "text": "not that one"}])
    make(source, tmp_path / "one", unit_mib=0.002)
    monkeypatch.setattr("ropewalk.datapipe.dedup.equal.TASK_DOCUMENTS", 40)
    make(source, tmp_path / "many", unit_mib=0.002)
    documents = rows(tmp_path / "one")
    assert documents == rows(tmp_path / "many")
    assert sorted(map(str, rejected(tmp_path / "one"))) == sorted(map(str, rejected(tmp_path / "many")))
    names = [row["id"] for row in documents]
    assert len(set(names)) == len(names)
    assert any(name.startswith("in.jsonl:481~") for name in names)
    assert len({line["id"] for line in rejected(tmp_path / "one") if line["reason"] == "duplicate"}) > 60


@given(st.lists(st.integers(0, 400), max_size=60), st.booleans())
def test_rows_are_packed_and_are_the_same(numbers: list[int], far: bool) -> None:
    rows = np.sort(np.array(numbers, np.int64)) * (1000 if far else 1)
    packed = Rows.of(rows)
    assert packed.all().tolist() == rows.tolist()
    held = sum(part.nbytes for part in (packed.bits, packed.numbers) if part is not None)
    assert held <= 4 * len(rows) + 1

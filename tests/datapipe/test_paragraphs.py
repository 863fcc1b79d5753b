"""Repeated paragraphs are cut out, the first of equal ones stays, whoever does the work or dies in between."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ropewalk.datapipe.dedup.paragraphs.config import Paragraphs
from ropewalk.datapipe.dedup.paragraphs.cutting import CUT, cut_text
from ropewalk.datapipe.dedup.paragraphs.find import paragraphs_of
from ropewalk.datapipe.text.document_batch import DocumentBatch
from tests.fakes.documents import configure, contents, made_with_kills, make, rejected, text_of, write_lines

KEYS: dict[str, Any] = {"paragraphs": {"min_bytes": 12}, "validation_fraction": 0, "unit_mib": 0.0002}
NOTICE = "All rights reserved, of whoever laid this rope."


def numbered(name: str) -> str:
    return f"This is what {name} alone says of ropes."


DOCUMENTS = {
    "first": f"{NOTICE}\n\n{numbered('first')}\nIt goes on.",
    "second": f"{numbered('second')}\n \n{NOTICE}\n\n{numbered('second more')}",
    "whole": f"{numbered('first')}\nIt goes on.\n\n\n{NOTICE}\n",
    "inside": f"{numbered('inside')}\n\n{numbered('inside')}\n\nshort\n\nshort",
    "last": f"\r\n{NOTICE}\r\n\r\n{numbered('last')}\r\n\r\n{NOTICE}",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", [{"id": name, "text": text} for name, text in DOCUMENTS.items()])


def test_the_first_stays_and_what_is_empty_goes(tmp_path: Path, source: Path) -> None:
    manifest = make(source, tmp_path / "out", **KEYS)
    assert text_of(tmp_path / "out") == {
        "first": DOCUMENTS["first"],
        "second": f"{numbered('second')}\n \n{numbered('second more')}",
        "inside": f"{numbered('inside')}\n\nshort\n\nshort",
        "last": f"{numbered('last')}",
    }
    assert [(record["id"], record["reason"]) for record in rejected(tmp_path / "out")] == [("whole", "paragraphs")]
    assert manifest.counts["paragraphs.repeated"] == 6
    assert manifest.config["paragraphs"] == {"of": "blank_lines", "min_bytes": 12}


def test_lines_are_cut_one_by_one(tmp_path: Path, source: Path) -> None:
    make(source, tmp_path / "out", **{**KEYS, "paragraphs": {"of": "lines", "min_bytes": 5}})
    result = text_of(tmp_path / "out")
    assert result["first"] == DOCUMENTS["first"]
    assert result["inside"] == f"{numbered('inside')}\n\nshort"
    assert "whole" not in result


def test_any_cut_of_the_input_and_any_kill_give_the_same_texts(tmp_path: Path, source: Path) -> None:
    make(source, tmp_path / "whole", **{**KEYS, "unit_mib": 64})
    config = configure(source, tmp_path / "out", **KEYS)
    assert made_with_kills(config) > 4
    make(source, tmp_path / "serial", **KEYS)
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert text_of(tmp_path / "out") == text_of(tmp_path / "whole")


def plain(text: str, by_line: bool, least: int) -> list[bytes]:
    """Paragraphs without the white space around them; a line is blank without a visible byte."""
    lines = text.encode().split(b"\n")
    parts = lines if by_line else [b"\n".join(part) for part in grouped(lines)]
    bare = (re.sub(rb"\A[\x00-\x20]+|[\x00-\x20]+\Z", b"", part) for part in parts)
    return [part for part in bare if len(part) >= least and part]


def grouped(lines: list[bytes]) -> list[list[bytes]]:
    groups: list[list[bytes]] = [[]]
    for line in lines:
        if re.search(rb"[^\x00-\x20]", line):
            groups[-1].append(line)
        else:
            groups.append([])
    return groups


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.sampled_from(list("ab\n\n \ré麻")), max_size=30), min_size=1, max_size=3),
    st.booleans(),
    st.integers(1, 4),
)
@example(["a", "\na\n", "a\n\na", "", "\n\n", "a\nb\n \nb"], False, 1)
def test_paragraphs_are_those_of_plain_python(texts: list[str], by_line: bool, least: int) -> None:
    options = Paragraphs(of="lines" if by_line else "blank_lines", min_bytes=least)
    result = paragraphs_of(DocumentBatch.of_texts(texts), options)
    observed: dict[bytes, tuple[int, int]] = {}
    for row, text in enumerate(texts):
        mine = result[result["row"] == row]
        expected = plain(text, by_line, least)
        assert mine["size"].tolist() == [len(part) for part in expected]
        for answer, part in zip(mine, expected, strict=True):
            assert part in text.encode()[answer["start"] : answer["end"]]
            assert observed.setdefault(part, (int(answer["hash"]), len(part))) == (int(answer["hash"]), len(part))
        if len(plain(text, by_line, 1)) == len(expected) > 0:
            assert int((mine["end"] - mine["start"]).sum()) == len(text.encode()), "nothing is left without all of them"
        cuts = mine[["start", "end"]]
        rest = cut_text(text, cuts) if len(cuts) else text
        assert plain(rest, by_line, 1) == [part for part in plain(text, by_line, 1) if len(part) < least] or not len(cuts)
    assert len({hashes for hashes, _ in observed.values()}) == len(observed)
    assert CUT.itemsize == 12

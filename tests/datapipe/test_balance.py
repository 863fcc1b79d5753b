"""Sources have the shares that were asked for; what is left out is listed, and what is repeated is told."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.models.cards.write import write_data_cards
from tests.fakes.documents import configure, make, rejected, rows, write_lines


def some_sources(folder: Path) -> Path:
    """Write 400, 100 and 20 documents of one length from three sources."""
    counts = {"web": 400, "books": 100, "notes": 20}
    return write_lines(
        folder / "in.jsonl",
        [
            {"id": f"{s}-{n}", "source": s, "text": f"text {n:06d} of {s:>6}, " * 3}
            for s, many in counts.items()
            for n in range(many)
        ],
    )


def split_rows(output: Path, folder: str) -> list[dict[str, Any]]:
    files = sorted((output / folder).glob("*.arrow"))
    return [row for file in files for row in pa.ipc.open_file(file.read_bytes()).read_all().to_pylist()]


def taken(output: Path) -> dict[str, Counter[str]]:
    results: dict[str, Counter[str]] = {}
    for row in split_rows(output, "shards"):
        results.setdefault(row["source"], Counter())[row["id"]] += 1
    return results


def test_weights_repeat_and_leave_out(tmp_path: Path) -> None:
    keys = {"validation_fraction": 0.1, "balance": {"weights": {"web": 0.5, "books": 0.4}}}
    manifest = make(some_sources(tmp_path), tmp_path / "out", **keys)
    result = taken(tmp_path / "out")
    assert set(result["books"].values()) <= {1, 2, 3}
    assert set(result["web"].values()) == {1}
    assert manifest.mixture["books"]["share"] == pytest.approx(0.4, abs=0.04)
    assert manifest.mixture["web"]["share"] == pytest.approx(0.5, abs=0.04)
    left_out = [record["id"] for record in rejected(tmp_path / "out")]
    assert manifest.rejected.reasons == {"balance": len(left_out)}
    assert (
        len(result["web"]) + len(left_out) + sum(r["source"] == "web" for r in split_rows(tmp_path / "out", "validation")) == 400
    )
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert report["sources"]["books"]["epochs"] == manifest.mixture["books"]["epochs"] > 1.5
    assert manifest.inputs[0].documents + manifest.inputs[0].rejected == 520


def test_weights_that_leave_no_text_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="balance: no text is left to train on"):
        make(some_sources(tmp_path), tmp_path / "out", balance={"weights": {"web": 0, "books": 0, "notes": 0}})


def test_a_temperature_flattens_up_to_the_most_epochs(tmp_path: Path) -> None:
    manifest = make(
        some_sources(tmp_path), tmp_path / "out", validation_fraction=0, balance={"temperature": 0.5, "max_epochs": 2}
    )
    mixture = manifest.mixture
    assert mixture["notes"]["epochs"] == 2
    assert mixture["web"]["epochs"] < 1 < mixture["books"]["epochs"] < 2


def test_all_as_it_is_where_nothing_is_asked_for(tmp_path: Path) -> None:
    plain = make(some_sources(tmp_path), tmp_path / "plain")
    same = make(some_sources(tmp_path), tmp_path / "same", balance={})
    assert rows(tmp_path / "plain") == rows(tmp_path / "same")
    assert plain.mixture == {}
    assert all(item["epochs"] == 1 for item in same.mixture.values())


def test_languages_have_the_shares_that_were_asked_for(tmp_path: Path) -> None:
    english = (
        "The rope of the lane is laid by hand, and that takes a while to do well, said number {} of the men who do it here. "
    )
    german = "Das Seil in der Gasse wird von Hand geschlagen, und das dauert eine Weile, sagte Nummer {} der Leute hier dazu. "
    texts = [(english.format(n) * 3) for n in range(30)] + [german.format(n) * 3 for n in range(10)]
    source = write_lines(tmp_path / "in.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    keys: dict[str, Any] = {"validation_fraction": 0, "balance": {"by": "language", "weights": {"de": 0.5}}}
    manifest = make(source, tmp_path / "out", **keys)
    assert manifest.mixture["de"]["share"] == pytest.approx(0.5, abs=0.1)
    assert manifest.mixture["en"]["epochs"] < 1 < manifest.mixture["de"]["epochs"]
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert report["balance"] == {"by": "language", "shares": manifest.mixture}
    write_data_cards(StoragePath(str(tmp_path / "out")))
    assert "Balanced by language" in (tmp_path / "out/report/report.html").read_text()
    message = make(source, tmp_path / "told", language={}, **keys)
    assert message.mixture == manifest.mixture


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no document has source 'wbe'; use one of books, notes, web"):
        make(some_sources(tmp_path), tmp_path / "out", balance={"weights": {"wbe": 0.5}})
    with pytest.raises(ConfigError, match="must be at most 1, not"):
        configure("in", "out", balance={"weights": {"a": 0.8, "b": 0.4}})

"""The report says what was kept, dropped and changed, with samples, and how filters treat groups of people."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.filters.registry import make_filter
from ropewalk.datapipe.report.fairness import TERMS, false_positive_gaps, newcombe, wilson
from ropewalk.datapipe.report.page import group_sources
from ropewalk.datapipe.report.samples import merge, select_samples, shard_facts
from ropewalk.jobs.models.cards.write import write_data_cards
from tests.datapipe.test_stages import STAGES, some_evaluation, some_input
from tests.fakes.documents import make, rejected, write_lines


def test_a_data_set_has_its_report(tmp_path: Path) -> None:
    keys = {**STAGES, "decontaminate": {"against": [str(some_evaluation(tmp_path))]}, "validation_fraction": 0}
    manifest = make(some_input(tmp_path), tmp_path / "out", **keys)
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert report["documents"] == {"kept": manifest.totals.documents, "dropped": 6, "renamed": 0}
    assert report["reasons"] == manifest.rejected.reasons
    assert report["stages"] == {"decontaminate": 1, "language": 5}
    assert report["sources"]["in.jsonl"] == {
        **manifest.totals.model_dump(include={"documents", "tokens", "bytes"}),
        **{"share": 1, "dropped": 6},
    }
    assert (report["languages"], report["pii"]) == ({"en": 32}, {"email": 1, "phone": 1})
    assert sum(report["lengths"].values()) == manifest.totals.documents
    assert set(report["false_positive_gaps"]) == {"language", "decontaminate"}
    assert len(report["false_positive_gaps"]["language"]["terms"]) >= 40
    assert len(report["samples"]["kept"]) == 15
    (german,) = report["samples"]["dropped"]["language.de"]
    assert german["text"].startswith("Alle Menschen sind frei und gleich an Würde")
    write_data_cards(StoragePath(str(tmp_path / "out")))
    page = (tmp_path / "out/report/report.html").read_text()
    HTMLParser().feed(page)
    assert "Alle Menschen" in page
    assert page.count('class="bars"') >= 5
    assert "<script" not in page


def test_what_is_shown_is_escaped(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"id": f"<b>{n}", "text": f"<script>alert({n})</script>"} for n in range(4)])
    make(source, tmp_path / "out", validation_fraction=0, tokenizer={"train": 300})
    write_data_cards(StoragePath(str(tmp_path / "out")))
    assert "<script" not in (tmp_path / "out/report/report.html").read_text()


def test_the_page_says_of_which_data_set_it_is_and_repeats_nothing(tmp_path: Path) -> None:
    for number in range(60):
        write_lines(tmp_path / f"in/part-{number % 3}/file-{number}.jsonl", [{"text": f"Text {number} with some words."}])
    make(tmp_path / "in", tmp_path / "ropes", validation_fraction=0)
    write_data_cards(StoragePath(str(tmp_path / "ropes")))
    page = (tmp_path / "ropes/report/report.html").read_text()
    assert "<title>ropes · Data set</title>" in page
    assert "Sources: 60 in 3 groups" in page
    assert "<td>part-1</td>" in page
    sample_names = re.findall(r"<summary>(.*?)</summary>", page)
    assert len(sample_names) > 10
    assert all(name.count("jsonl") <= 1 for name in sample_names), "an id that names its source stands alone"
    assert "Dropped, by stage" not in page, "a chart that equals the next one"


def test_many_sources_are_grouped_by_folder_or_site() -> None:
    row = {"tokens": 2, "documents": 1, "dropped": 0}
    few = {f"book-{number}": row for number in range(20)}
    assert set(group_sources(few)) == set(few)
    files = {f"docs/{'ab'[number % 2]}/{number}.md": row for number in range(50)}
    assert group_sources(files) == {f"docs/{folder}": {"tokens": 50, "documents": 25, "dropped": 0} for folder in ("a", "b")}, (
        "one folder for all is no group"
    )
    sites = {f"https://{'xy'[number % 2]}.example/page/{number}": row for number in range(30)}
    assert set(group_sources(sites)) == {"x.example", "y.example"}
    alike = group_sources({f"file-{number:03d}": {**row, "tokens": number} for number in range(100)})
    assert len(alike) == 21
    assert alike["80 others"]["tokens"] == sum(range(80))


def test_dropped_documents_are_listed_with_file_and_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "in/a.jsonl", [{"id": n, "text": f"Text number {n} of some."} for n in range(20)])
    write_lines(
        tmp_path / "in/b.jsonl", [{"id": "b", "text": "One more text."}, b"{broken", {"id": "twin", "text": "One more text."}]
    )
    make(tmp_path / "in", tmp_path / "out", validation_fraction=0, unit_mib=1e-4)  # a unit is about a hundred bytes
    assert rejected(tmp_path / "out", places=True) == [
        {"id": "b.jsonl:2", "source": "b.jsonl", "reason": "invalid_json", "file": "b.jsonl", "line": 2},
        {"id": "twin", "source": "b.jsonl", "reason": "duplicate", "file": "b.jsonl", "line": 3},
    ]


def test_facts_do_not_depend_on_how_documents_were_cut() -> None:
    ids = [f"doc-{n}" for n in range(40)]
    lengths = np.arange(1, 41)

    def facts(rows: slice) -> dict[str, object]:
        some = ids[rows]
        return shard_facts(some, ["a", "b"] * (len(some) // 2), some, lengths[rows], lengths[rows])

    whole = merge([facts(slice(0, 40))])
    assert merge([facts(slice(20, 40)), facts(slice(0, 20))]) == whole
    assert whole["samples"]["kept"] == select_samples(
        [{"id": i, "source": "ab"[n % 2], "text": i} for n, i in enumerate(ids)], 15
    )


def test_intervals_are_those_of_the_papers() -> None:
    for count, n in ((0, 60), (60, 60), (7, 60)):
        interval = binomtest(count, n).proportion_ci(method="wilson")
        assert wilson(count, n) == pytest.approx((interval.low, interval.high))
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)  # Newcombe 1998, table II, method 10
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-5)


def test_a_biased_filter_is_seen_and_a_blind_one_has_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "biased_scorer.py").write_text("def score(texts):\n    return [float('Muslim' in text) for text in texts]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"biased": {"function": "biased_scorer:score", "drop_above": 0.5}}
    gaps = false_positive_gaps({"scores": make_filter("scores", {"scorers": options}), "min_words": make_filter("min_words", {})})
    assert gaps["scores"]["largest_gap"]["term"] == "Muslim"
    assert gaps["scores"]["largest_gap"]["interval"][0] > 0.9
    assert len(gaps["scores"]["terms"]) == len(TERMS.split()) >= 40
    assert all(term["gap"] == 0 for term in gaps["min_words"]["terms"].values())

"""Captured exchanges become training data: the same bytes each time, with a share of earlier data."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.collect.config import CollectConfig
from ropewalk.jobs.serving.collect.files import CONVERSATIONS, PAIRS
from ropewalk.jobs.serving.collect.job import main
from ropewalk.jobs.serving.feedback.records import FOLDER, exchanges_store, judgements_store, ratings_store
from tests.jobs.serving.refresh.staged import NOW, captured, keep, rated, serving_run

ITEM = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def collect(served: RunDir, **keys: Any) -> tuple[RunDir, dict[str, Any]]:
    config = load_config(CollectConfig, {"watch": served.id, "until": NOW, **keys})
    run = RunDir.create("collect", {"job": "collect", "config": config.model_dump(mode="json")}, served.path.parent)
    context = JobContext(run=run, attempt=run.begin_attempt())
    context.fence.claim()
    return run, dict(main(context)["counts"])  # type: ignore[call-overload]


def rows(run: RunDir, name: str = CONVERSATIONS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / name).read_text().splitlines()]


def test_corrected_and_liked_answers_are_learnt_from(tmp_path: Path) -> None:
    served = serving_run(tmp_path)
    run, counts = collect(served)
    assert [(row["id"], row["why"], row["messages"][-1]["content"]) for row in rows(run)] == [
        *((f"req-{n}", "corrected", f"{n}, of course.") for n in range(3)),
        *((f"req-{n}", "liked", f"It is {n}.") for n in range(3, 6)),
    ]
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows(run, PAIRS)][:1] == [
        ("0, of course.", "It is 0.")
    ]
    assert rows(run)[0]["ratings"] == ["rating-0"]
    assert counts["disliked"] == counts["not judged"] == 1
    assert [row["why"] for row in rows(collect(served, unrated=True)[0])].count("not judged") == 1
    assert [row["id"] for row in rows(collect(served, most=2, since=NOW - 1000 + 3)[0])] == ["req-4", "req-5"]
    again, _ = collect(served)
    assert (again.path / CONVERSATIONS).read_bytes() == (run.path / CONVERSATIONS).read_bytes()


def test_a_corrected_conversation_and_a_failed_answer(tmp_path: Path) -> None:
    served = serving_run(tmp_path)
    keep(
        exchanges_store(served.path / FOLDER),
        [captured(20, "Book it.", "No."), captured(21, "And?", "So", outcome="cancelled"), captured(22, "And?", "")],
    )
    turns = [
        {"role": "assistant", "content": "Let me see."},
        {"role": "tool", "content": "Free"},
        {"role": "assistant", "content": "Done."},
    ]
    ratings = [rated(20, correction=json.dumps(turns)), rated(21, rating="up"), rated(22, rating="up")]
    keep(ratings_store(served.path / FOLDER), ratings)
    run, counts = collect(served)
    assert [message["content"] for message in rows(run)[-1]["messages"]] == ["Book it.", "Let me see.", "Free", "Done."]
    assert (counts["no_answer"], counts["pairs"]) == (2, 4)


def test_of_each_named_client_only_so_many_are_learnt_from(tmp_path: Path) -> None:
    served = serving_run(tmp_path)
    rows_of_flood = [captured(30 + n, f"Who is {n}?", "Me", client="flood" if n < 8 else None) for n in range(12)]
    keep(exchanges_store(served.path / FOLDER), rows_of_flood)
    more = [rated(30 + n, rating="up", client="flood") for n in range(12)]
    corrections = [
        rated(n, correction=json.dumps("Obey."), client="flood") | {"id": f"late-{n}", "time": NOW} for n in range(2, 5)
    ]
    keep(ratings_store(served.path / FOLDER), [*more, *corrections])
    run, counts = collect(served, until=NOW + 1, most_per_client=2)
    by_client = Counter(row["client"] for row in rows(run))
    assert by_client == {"flood": 2, None: 7}, "those that it asked or corrected; clients without a name are not limited"
    assert [row["id"] for row in rows(run) if row["client"]] == ["req-36", "req-37"]
    assert [pair["client"] for pair in rows(run, PAIRS)].count("flood") == 2
    assert collect(served, until=NOW + 1, most_per_client=None)[1]["new"] == counts["new"] + 9


def test_a_reviewer_stands_before_a_user(tmp_path: Path) -> None:
    served = serving_run(tmp_path)
    judgement = {"id": "j1", "time": NOW - 5, "reviewer": "ann", "item": "req-4", "first": "req-4", "choice": "neither"}
    rating = {**judgement, "corrected": "req-4", "correction": "Four, as ever."}
    keep(judgements_store(served.path / FOLDER), [rating])
    run, counts = collect(served)
    (result,) = (row for row in rows(run) if row["id"] == "req-4")
    assert (result["why"], result["messages"][-1]["content"], counts["reviewed"]) == ("reviewed", "Four, as ever.", 1)
    assert [pair["chosen"][0]["content"] for pair in rows(run, PAIRS) if pair["id"] == "req-4"] == ["Four, as ever."]


def test_what_is_said_later_is_learnt_from_later_and_changes_no_data_of_before(tmp_path: Path) -> None:
    served = serving_run(tmp_path)
    keep(ratings_store(served.path / FOLDER), [rated(7, rating="up", user="ann")])
    first, _ = collect(served)
    answer = json.dumps("Seven, rather.")
    keep(ratings_store(served.path / FOLDER), [rated(7, user="ann", correction=answer) | {"id": "late", "time": NOW + 10}])
    judgement = {"id": "j1", "time": NOW + 20, "reviewer": "bob", "item": "req-6", "first": "req-6", "choice": "neither"}
    keep(judgements_store(served.path / FOLDER), [{**judgement, "corrected": "req-6", "correction": "Six."}])
    again, _ = collect(served)
    assert [(again.path / name).read_bytes() for name in (CONVERSATIONS, PAIRS)] == [
        (first.path / name).read_bytes() for name in (CONVERSATIONS, PAIRS)
    ]
    later, _ = collect(served, since=NOW, until=NOW + 60)
    assert [(row["id"], row["messages"][-1]["content"]) for row in rows(later)] == [
        ("req-6", "Six."),
        ("req-7", "Seven, rather."),
    ]
    assert [pair["id"] for pair in rows(later, PAIRS)] == ["req-6", "req-7"]


def test_a_share_of_what_was_learnt_before_and_no_evaluation_item(tmp_path: Path) -> None:
    served = serving_run(tmp_path)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    old = [{"id": f"old-{n}", "messages": turns} for n in range(50)]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": ITEM}) + "\n")
    keep(exchanges_store(served.path / FOLDER), [captured(30, f"Please continue: {ITEM}", "sixteen")])
    keep(ratings_store(served.path / FOLDER), [rated(30, rating="up")])
    keys = {
        "replay": {"data": str(tmp_path / "old.jsonl"), "share": 0.4},
        "decontaminate": {"against": str(tmp_path / "quiz.jsonl")},
    }
    run, counts = collect(served, **keys)
    assert (counts["new"], counts["contaminated"], counts["replay"]) == (6, 1, 4)
    assert [row["id"].startswith("replay-old-") for row in rows(run)] == [False] * 6 + [True] * 4
    assert rows(run) == rows(collect(served, **keys)[0])
    assert rows(run) != rows(collect(served, **keys, seed=1)[0]), "the seed draws what is repeated"


def test_a_run_that_captures_nothing_is_refused(tmp_path: Path) -> None:
    served = RunDir.create("serve", {"job": "serve", "config": {}}, tmp_path)
    with pytest.raises(ConfigError, match="has captured nothing yet"):
        load_config(CollectConfig, {"watch": str(served.path)}).preflight()

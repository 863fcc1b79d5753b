"""Exchanges joined with what was said of them, counted with intervals, and written as what align and finetune read."""

import json
import stat
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ropewalk.cluster.errors import ConfigError
from ropewalk.datapipe.chat.config import ChatConfig
from ropewalk.datapipe.chat.conversation import conversation_of
from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.feedback.records import FOLDER, answers_store, exchanges_store
from ropewalk.jobs.serving.feedback.summary import share, summarize
from ropewalk.jobs.serving.feedback.training_data import parse_time, to_conversations, to_documents, to_pairs
from ropewalk.jobs.training.align.preferences.records import Preference, pair_of
from tests.jobs.serving.feedback.exchanges import START, exchange
from tests.jobs.serving.feedback.runs import serving_run
from tests.jobs.shell import Shell

RATINGS: list[dict[str, Any]] = [
    {"answer_id": "chatcmpl-000000", "rating": "up", "user": "ann"},
    {"answer_id": "req-000001", "rating": "down", "user": "ann"},
    {"answer_id": "chatcmpl-000001", "rating": "up", "user": "ann"},  # ann thought again
    {"answer_id": "chatcmpl-000002", "score": 0.1, "correction": "Say this", "comment": "no"},
    {"answer_id": "chatcmpl-000003", "rating": "down"},
    {"answer_id": "chatcmpl-000003", "rating": "up"},
    {"answer_id": "chatcmpl-000004", "rating": "down"},
]


def test_ratings_are_joined_by_the_answers_id_or_the_requests(tmp_path: Path) -> None:
    run = serving_run(tmp_path, [exchange(n) for n in range(6)], RATINGS)
    results = list(exchanges(run.path))
    assert [item.rating for item in results] == [1, 1, -1, None, -1, None]
    assert [len(item.ratings) for item in results] == [1, 1, 1, 2, 1, 0]
    assert results[2].correction == "Say this"
    assert [item.prompt for item in results] == ["And now?"] * 6
    assert len({item.conversation for item in results}) == 1
    assert [exchange.id for exchange in exchanges(run.path, since=START + 2, until=START + 4)] == ["req-000002", "req-000003"]


def test_ratings_of_answers_that_were_not_captured_count_for_their_version(tmp_path: Path) -> None:
    requests = [exchange(7, request=b'{"store": false, "messages": []}'), exchange(8)]
    run = serving_run(tmp_path, requests, [{"answer_id": "chatcmpl-000007", "rating": "up"}])
    summary = summarize(run.path / FOLDER)
    assert (summary.answers, summary.captured, summary.ratings) == (2, 1, 1)
    assert [(line.name, line.rated.n, line.rated.value) for line in summary.versions] == [("chat@1", 0, None), ("chat@2", 1, 1.0)]


def test_what_was_said_becomes_what_align_and_finetune_read(tmp_path: Path) -> None:
    requests = [exchange(n, answered=f"Answer {n}") for n in range(6)]
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    requests.append(exchange(6, request=json.dumps({"messages": [picture]}).encode()))
    requests.append(exchange(7, outcome="failed", answer=b""))
    messages = [*RATINGS, {"answer_id": "chatcmpl-000006", "rating": "up"}, {"answer_id": "req-000007", "correction": "Yes"}]
    result = list(exchanges(serving_run(tmp_path, requests, messages).path))
    pairs = to_pairs(result)
    preferences = [pair_of(record) for record in pairs.records]
    assert all(isinstance(preference, Preference) for preference in preferences)
    said_of = [[answer[0]["content"] for answer in (record["chosen"], record["rejected"])] for record in pairs.records]
    assert said_of == [["Say this", "Answer 2"], ["Answer 0", "Answer 4"]]
    assert pairs.left_out == {"not_text": 1, "no_answer": 1, "rated_without_a_counterpart": 1}
    chats = to_conversations(result)
    learnt = [conversation_of(record, ChatConfig()).messages[-1]["content"] for record in chats.records]
    assert learnt == ["Answer 0", "Answer 1", "Say this", "Yes"]
    assert chats.left_out == {"not_a_conversation": 1}
    left_out: Counter[str] = Counter()
    documents = list(to_documents(result, "run", left_out))
    assert documents[0]["text"] == "Hello\n\nHello\n\nNoted.\n\nAnd now?\n\nAnswer 0"
    assert (len(documents), left_out) == (6, {"not_text": 1, "no_answer": 1})


def test_intervals_are_honest_where_all_agree_and_where_conversations_repeat() -> None:
    assert share([], []).value is None
    alike = share([1.0] * 10, [str(n) for n in range(10)])
    assert alike.low == pytest.approx(0.722, abs=1e-3)  # Wilson's, of 10 of 10
    assert alike.high == pytest.approx(1.0)
    half = share([1.0, 0.0] * 10, [str(n) for n in range(20)])
    assert (half.low, half.high) == pytest.approx((0.293, 0.707), abs=0.02)
    repeated = share([1.0, 1.0, 0.0, 0.0] * 10, [str(n // 2) for n in range(40)])
    assert (repeated.low, repeated.high) == pytest.approx((half.low, half.high), abs=1e-9)


def test_the_command_counts_and_exports(shell: Shell) -> None:
    run = serving_run(shell.home / "runs", [exchange(n, answered=f"Answer {n}") for n in range(6)], RATINGS)
    out = shell("feedback", run.id)
    assert "6 answers (6 completed)" in out
    assert "6 exchanges captured, 6 ratings" in out
    output = json.loads(shell("feedback", run.id, "--json", "--export", "pairs", "pairs.jsonl"))
    assert output["export"] == {
        "kind": "pairs",
        "file": "pairs.jsonl",
        "records": 2,
        "left_out": {"rated_without_a_counterpart": 1},
    }
    assert len(Path("pairs.jsonl").read_text().splitlines()) == 2
    assert stat.S_IMODE(Path("pairs.jsonl").stat().st_mode) == 0o600
    packed = json.loads(shell("feedback", run.id, "--json", "--export", "documents", "documents.jsonl.zst"))["export"]
    assert packed["records"] == 6 == len(zstandard.open("documents.jsonl.zst", "rt").read().splitlines())
    assert sorted(path.name for path in Path.cwd().glob("*.jsonl*")) == ["documents.jsonl.zst", "pairs.jsonl"]
    assert [(line["name"], line["rated"]["n"]) for line in output["versions"]] == [("chat@1", 3), ("chat@2", 3)]
    assert json.loads(shell("feedback", run.id, "--json", "--since", "1h"))["answers"] == 0
    for arguments, complaint in (
        (("--since", "yesterday"), "is not a time"),
        (("--export", "poems", "x.jsonl"), "choose pairs, chats, documents"),
        (("--export", "pairs", "x.csv"), "must end in .jsonl"),
    ):
        assert complaint in shell.mistake("feedback", run.id, *arguments)


def test_the_command_deletes_what_the_configuration_lets_nobody_keep(shell: Shell) -> None:
    now = time.time()
    some = [exchange(1, time=now - 9 * 86_400), exchange(2, time=now - 60)]
    run = serving_run(shell.home / "runs", some, retention_days=7)
    assert json.loads(shell("feedback", run.id, "--json"))["deleted"] == 1
    assert exchanges_store(run.path / FOLDER).read()["id"].to_pylist() == ["req-000002"]
    assert answers_store(run.path / FOLDER).read().num_rows == 2  # without content


def test_times_that_a_user_names() -> None:
    assert parse_time("7d", now=1e9) == 1e9 - 7 * 86_400
    assert parse_time("1.5h", now=1e9) == 1e9 - 5400
    assert time.strftime("%Y-%m-%d", time.localtime(parse_time("2026-11-27"))) == "2026-11-27"
    with pytest.raises(ConfigError, match="is not a time"):
        parse_time("soon")

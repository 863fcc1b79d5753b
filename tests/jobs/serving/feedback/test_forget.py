"""Whoever asks to be forgotten is: in every store, beside a writer that goes on, and whoever learnt from it is named."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.serving import forget
from ropewalk.jobs.serving.feedback import capture as capture_module
from ropewalk.jobs.serving.feedback.capture import Capture, CaptureConfig
from ropewalk.jobs.serving.feedback.records import (
    FOLDER,
    answers_store,
    exchanges_store,
    judgements_store,
    ratings_store,
    samples_store,
)
from ropewalk.jobs.serving.feedback.store import Spool
from ropewalk.jobs.serving.forget import forget_exchanges
from tests.forked import FORKING
from tests.jobs.models.registry.registered import judged, trained
from tests.jobs.serving.collect.test_collect import collect
from tests.jobs.serving.feedback.exchanges import exchange
from tests.jobs.serving.refresh.staged import NOW, captured, keep
from tests.jobs.shell import Shell

SECRET = 'I am "Ann" Smith'


def served(root: Path) -> RunDir:
    """A serving run: ann asked 0 and 1, bob asked 2 to 5 and corrected 1; of 3, 4 and 5 one piece of feedback is about Ann."""
    run = RunDir.create("serve", {"job": "serve", "config": {"model": "production", "capture": {}}, "cluster": "local"}, root)
    run.begin_attempt()
    folder = run.path / FOLDER
    rows = [captured(n, SECRET if n < 2 else f"What is {n}?", f"It is {n}.", client="ann" if n < 2 else "bob") for n in range(6)]
    keep(exchanges_store(folder), rows)
    keep(answers_store(folder), rows)
    rating: dict[str, Any] = {"time": NOW, "client": "bob"}
    corrections = {0: "No.", 1: "Yes.", 2: "Two.", 3: [{"role": "assistant", "tool_calls": json.dumps({"name": SECRET})}]}
    keep(
        ratings_store(folder),
        [{"id": f"r{n}", "exchange": f"req-{n}", "correction": json.dumps(text), **rating} for n, text in corrections.items()],
    )
    keep(samples_store(folder), [{"id": "s", "time": NOW, "exchange": "req-4", "answer": json.dumps(f"Is it {SECRET}?")}])
    judgement = {"time": NOW, "reviewer": "eva", "choice": "both"}
    judgements = [
        {"id": "j5", "item": "req-5", "first": "req-5", "correction": SECRET},
        {"id": "j2", "item": "req-2", "second": "s"},
    ]
    keep(judgements_store(folder), [{**judgement, **row} for row in judgements])
    (folder / "review").mkdir()
    (folder / "review/pairs.jsonl").write_text(SECRET)
    return run


def left(run: RunDir) -> list[list[str]]:
    stores = (exchanges_store, answers_store, ratings_store, samples_store, judgements_store)
    return [[row["id"] for row in store(run.path / FOLDER).rows()] for store in stores]


def written(run: RunDir) -> bytes:
    return b"".join(path.read_bytes() for path in (run.path / FOLDER).rglob("*") if path.is_file())


def test_a_text_is_erased_from_exchanges_corrections_and_second_answers(tmp_path: Path) -> None:
    run = served(tmp_path)
    erased, trace = forget_exchanges(run, containing=SECRET)
    assert erased == {"judgement": 1, "second answer": 1, "rating": 3, "exchange": 5, "ledger row": 5, "review file": 1}
    assert left(run) == [["req-2"], ["req-2"], ["r2"], [], ["j2"]]
    assert b"Ann" not in written(run)
    assert trace["places"] == []


def test_a_clients_exchanges_and_its_ratings_of_others_are_erased(tmp_path: Path) -> None:
    run = served(tmp_path)
    erased, _ = forget_exchanges(run, client="bob")
    assert (erased["exchange"], erased["rating"]) == (4, 4), "it also corrected ann's"
    assert left(run)[0] == left(run)[1] == ["req-0", "req-1"]
    assert left(run)[2:] == [[], [], []]
    assert not any(forget_exchanges(run, client="nobody")[0].values())


def test_the_command_names_the_data_and_the_models_that_learnt_from_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    monkeypatch.setenv("ROPEWALK_RUNS", str(root))
    monkeypatch.chdir(tmp_path)
    shell = Shell(capsys, monkeypatch, tmp_path)
    run = served(root)
    first, _ = collect(run, until=NOW + 1)
    keep(ratings_store(run.path / FOLDER), [{"id": "late", "exchange": "req-4", "time": NOW + 1, "rating": "up"}])
    replay = {"data": str(first.path / "data/conversations.jsonl"), "share": 0.9}
    again, _ = collect(run, since=NOW + 1, until=NOW + 2, replay=replay)
    tuned = trained(root, name="tuned", data=str(first.path / "data/conversations.jsonl"))
    judged(root, tuned.id)
    promote(tuned.id, root=root)
    out = shell("forget", run.id, "--exchange", "chat-1")
    assert f"{run.id}: erased 1 rating, 1 exchange, 1 ledger row, 1 review file\n" in out
    assert f"{first.path}/data/conversations.jsonl: 1 record\n" in out
    assert f"{first.path}/data/pairs.jsonl: 1 record\n" in out
    assert f"{again.path}/data/conversations.jsonl: 1 record\n" in out, "it repeats what was collected before"
    assert f"{tuned.id} (finetune, 4 steps) was trained on it" in out
    assert f"version main@1 (production) is {tuned.id}" in out
    assert json.loads(shell("forget", run.id, "--exchange", "req-1", "--json"))["erased"]["exchange"] == 0
    assert f"{first.path}/data/conversations.jsonl: 4 records\n" in shell("forget", run.id, "--containing", SECRET)
    assert "one of --exchange, --client and --containing" in shell.mistake("forget", run.id)


def test_records_are_erased_beside_a_writer_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "subprocess", FORKING)
    run = RunDir.create("serve", {"job": "serve", "config": {"capture": {}}}, tmp_path)

    async def scenario() -> dict[str, int]:
        capture = Capture(run.path / FOLDER, CaptureConfig(retention_days=1e5, mask=()))
        await capture.start()
        for number in range(50):
            capture.record(exchange(number, SECRET if number == 7 else "Hello", client="ann" if number == 7 else "bob"))
        status, _ = await capture.feedback("feedback-1", b'{"answer_id": "req-000007", "comment": "Ann"}', "bob")
        assert status == 200
        erasing = asyncio.create_task(asyncio.to_thread(forget_exchanges, run, client="ann"))
        number = 50
        while not erasing.done() or number < 100:
            capture.record(exchange(number, client="bob"))
            number += 1
            await asyncio.sleep(0.01)
        await capture.close()
        assert answers_store(run.path / FOLDER).read()["id"].to_pylist() == [f"req-{n:06d}" for n in range(number) if n != 7]
        return (await erasing)[0]

    erased = asyncio.run(scenario())
    assert (erased["exchange"], erased["rating"], erased["ledger row"]) == (1, 1, 1)
    assert b"Ann" not in written(run)
    assert not (run.path / FOLDER / "roll").exists()


def test_nothing_is_erased_while_a_review_holds_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = served(tmp_path)
    monkeypatch.setattr(forget, "WRITER_SECONDS", 0.1)
    spool = Spool(judgements_store(run.path / FOLDER).folder)
    with pytest.raises(ConfigError, match="is in use, so nothing was erased; end the reviews"):
        forget_exchanges(run, client="bob")
    assert len(left(run)[0]) == 6
    spool.close()
    assert forget_exchanges(run, client="bob")[0]["exchange"] == 4

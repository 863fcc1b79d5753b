"""Every exchange is kept once, masked, though gateways and writers are killed; and it costs the gateway next to nothing."""

import asyncio
import fcntl
import json
import os
import random
import resource
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.feedback import capture as capture_module
from ropewalk.jobs.serving.feedback import writer
from ropewalk.jobs.serving.feedback.capture import Capture, CaptureConfig, is_sampled
from ropewalk.jobs.serving.feedback.exchange import FEEDBACK, SETTINGS, Exchange, exchange_frame, frame
from ropewalk.jobs.serving.feedback.known_answers import KnownAnswer, KnownAnswers, SearchLimitError
from ropewalk.jobs.serving.feedback.read import find_answer
from ropewalk.jobs.serving.feedback.records import FOLDER, answers_store, exchanges_store, ratings_store
from ropewalk.jobs.serving.feedback.store import Spool
from ropewalk.jobs.serving.feedback.summary import summarize
from ropewalk.jobs.serving.feedback.tables import lines_of
from ropewalk.jobs.serving.feedback.writer import serve
from tests.forked import FORKING, Forked
from tests.jobs.serving.feedback.exchanges import exchange, items, personal_exchange, planted
from tests.patience import MachineClock, Patience, ended, until

ANSWER = {"role": "assistant", "content": "Yes"}


def correction(*messages: dict[str, Any]) -> bytes:
    """Body of feedback that replaces an answer by messages."""
    return json.dumps({"answer_id": "chatcmpl-000000", "correction": messages}).encode()


class Gateway:
    """A gateway's process, and what it has said."""

    def __init__(self, folder: Path, journal: list[int]) -> None:
        lines = (orjson.dumps(personal_exchange(number)._asdict(), default=bytes.decode) for number in journal)
        folder.parent.joinpath("journal").write_bytes(b"\n".join(lines))
        self.said = folder.parent / "said"
        with self.said.open("wb") as output, folder.parent.joinpath("journal").open() as value:
            command = module_command("tests.jobs.serving.feedback.gateway", str(folder))
            self.process: Any = Forked(command, stdin=value, stdout=output)

    def words(self) -> list[str]:
        """Complete output lines of the process."""
        output = self.said.read_text()
        return output[: output.rfind("\n") + 1].split()

    def durable(self) -> set[str]:
        """The ids that were confirmed so far."""
        return {word for word in self.words() if word.startswith("req-")}

    def has_confirmed(self, least: int) -> bool:
        """Return True if at least `least` exchanges are durable, or all of them."""
        return "all" in self.words() or len(self.durable()) >= least

    @property
    def writer(self) -> int:
        """The process that writes for it."""
        lines = self.words()
        return int(lines[lines.index("writer") + 1])

    def kill(self) -> set[str]:
        """End it as the kernel does; what it had confirmed."""
        self.process.kill()
        ended(self.process)
        return self.durable()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.soak("twenty kills; make test runs one of each"))])
def test_every_exchange_is_stored_once_and_masked_despite_kills(tmp_path: Path, kills: int) -> None:
    total, draw = 150 * kills if kills > 1 else 200, random.Random(kills)
    journal, folder = list(range(total)), tmp_path / FOLDER
    for kill in range(kills):
        gateway = Gateway(folder, journal)
        least = draw.randrange(1, 100)
        until(partial(gateway.has_confirmed, least), Patience.STEP)
        if kill % 2 == 0:  # its writer first: what it had not confirmed goes to the next one
            os.kill(gateway.writer, signal.SIGKILL)
            until(partial(gateway.has_confirmed, len(gateway.durable()) + 50), Patience.STEP)  # which a successor has
        confirmed = gateway.kill()
        journal = [number for number in journal if f"req-{number:06d}" not in confirmed]
    last = Gateway(folder, journal)
    until(lambda: "all" in last.words(), Patience.STEP)
    last.kill()
    until(lambda: not list(folder.glob("*/spool-*")), Patience.STEP)  # its writer ends too

    wanted = [f"req-{number:06d}" for number in range(total)]
    from datasets import load_dataset  # takes seconds to import, and every worker collects this module

    for store in (exchanges_store(folder), answers_store(folder)):
        assert store.read()["id"].to_pylist() == wanted
        shards = [str(path) for path in store.shards()]
        loaded = load_dataset("arrow", data_files=shards, cache_dir=str(tmp_path / "cache"))["train"]
        assert sorted(loaded["id"]) == wanted
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"<EMAIL>" in written
    assert [item for item in items(planted()) if item.encode() in written] == []


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers that need no imports; those of `Gateway` start as in production."""
    monkeypatch.setattr(capture_module, "subprocess", FORKING)


def _writer_of(capture: Capture) -> psutil.Process:
    assert capture._process is not None
    return psutil.Process(capture._process.pid)


async def _captured(folder: Path, config: CaptureConfig | None, count: int) -> Capture:
    capture = Capture(folder, config)
    await capture.start()
    for number in range(count):
        capture.record(personal_exchange(number))
    return capture


@pytest.mark.usefixtures("forked")
def test_a_writer_that_dies_while_it_is_closed_has_a_successor(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER

    async def scenario() -> int:
        capture = await _captured(folder, CaptureConfig(retention_days=1e5, mask=()), 50)
        _writer_of(capture).kill()
        await capture.close()
        return capture.waiting

    assert asyncio.run(scenario()) == 0
    assert exchanges_store(folder).read()["id"].to_pylist() == [f"req-{number:06d}" for number in range(50)]


@pytest.mark.usefixtures("forked")
def test_off_it_keeps_a_ledger_without_a_word_of_content(tmp_path: Path) -> None:
    run = RunDir(tmp_path)

    async def scenario() -> tuple[int, bytes]:
        capture = await _captured(run.path / FOLDER, None, 20)
        answer = await capture.feedback("feedback-1", b'{"answer_id": "chatcmpl-000003", "rating": "up"}')
        await capture.close()
        return answer

    status, body = asyncio.run(scenario())
    assert status == 403
    assert json.loads(body)["error"]["code"] == "capture_is_off"
    assert exchanges_store(run.path / FOLDER).read().num_rows == 0
    answer = find_answer(run, "chatcmpl-000003")
    assert answer is not None
    assert (answer.id, answer.version, answer.replica, answer.prompt_tokens) == ("req-000003", "chat@2", "replica-0", 11)
    assert find_answer(run, "req-000003") == answer
    assert find_answer(run, "chatcmpl-none") is None
    written = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert [item.text[:40] for item in planted()[:20] if item.text[:40].encode() in written] == []


@pytest.mark.usefixtures("forked")
def test_feedback_is_written_down_before_its_client_hears_so(tmp_path: Path) -> None:
    mail = "jane.doe@mail.example.org"
    good = {"answer_id": "chatcmpl-000000", "rating": "down", "correction": f"Ask {mail}", "comment": mail, "user": mail}
    bad = [
        *(b"nope", b"{}", b"[]", b'{"answer_id": "a"}', b'{"answer_id": "a", "rating": "upwards"}', b"\xff"),
        *(
            b'{"answer_id": "a", "score": NaN}',
            b'{"answer_id": "a", "score": 1.5}',
            b'{"answer_id": "a", "rating": "up", "stars": 5}',
        ),
        *(correction({"role": role, "content": "Obey me."}, ANSWER) for role in ("system", "developer", "user")),
        *(correction({**ANSWER, "weight": 5}), correction(*[ANSWER] * 65), correction({**ANSWER, "content": "x" * 300_000})),
        correction({"role": "tool", "content": "x"}),
    ]

    async def scenario() -> tuple[tuple[int, bytes], list[tuple[int, bytes]]]:
        capture = await _captured(tmp_path, CaptureConfig(retention_days=1e5), 1)
        first = await capture.feedback("feedback-0", json.dumps(good).encode(), "app")  # the answer is just being recorded
        rest = [await capture.feedback(f"feedback-{number}", body) for number, body in enumerate(bad, 1)]
        await capture.close()
        return first, rest

    (status, body), rest = asyncio.run(scenario())
    assert (status, json.loads(body)["answer_id"]) == (200, "chatcmpl-000000")
    assert [status for status, _ in rest] == [400] * len(bad)
    errors = [json.loads(body)["error"] for _, body in rest]
    assert all(set(error) == {"message", "type", "param", "code"} for error in errors)
    assert [error["param"] for error in errors][4:9] == ["rating", None, None, "score", "stars"]
    (row,) = ratings_store(tmp_path).read().to_pylist()
    assert (row["rating"], row["comment"], json.loads(row["correction"])) == ("down", "<EMAIL>", "Ask <EMAIL>")
    assert (row["exchange"], row["client"]) == ("req-000000", "app")
    assert mail.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.usefixtures("forked")
def test_only_answers_of_the_ledger_are_rated_and_each_a_few_times(tmp_path: Path) -> None:
    """Also by a later writer, which has to search for answers of earlier ones."""

    async def scenario(count: int, numbers: list[str], prefix: str) -> list[int]:
        capture = await _captured(tmp_path, CaptureConfig(retention_days=1e5, mask=()), count)
        bodies = [json.dumps({"answer_id": number, "rating": "up"}).encode() for number in numbers]
        statuses: list[int] = []
        for n, body in enumerate(bodies):
            clock = MachineClock()
            while (status := (await capture.feedback(f"{prefix}-{n}", body))[0]) == 429 and body not in bodies[:n]:
                assert clock.look() < Patience.START.value  # a search that was slow keeps others waiting ten times as long
                await asyncio.sleep(0.5)
            statuses.append(status)
        await capture.close()
        return statuses

    assert asyncio.run(scenario(2, ["req-000009", "nobody", "req-000000", "chatcmpl-000000"], "a")) == [404, 404, 200, 200]
    assert asyncio.run(scenario(0, ["req-000009", *["req-000000"] * 20, "req-000001"], "b")) == [404, *[200] * 18, 429, 429, 200]
    assert ratings_store(tmp_path).read()["exchange"].to_pylist().count("req-000000") == 20


def test_searches_for_unknown_answers_take_a_small_share_of_the_writers_time(tmp_path: Path) -> None:
    now = [100.0]
    answers = KnownAnswers(answers_store(tmp_path), ratings_store(tmp_path), lambda: now[0])
    answers.add([{"id": "req-1", "answer_id": "chat-1", "time": 1.0}])
    searched = 0

    def slow(columns: Sequence[str], value: str) -> None:
        nonlocal searched
        searched += 1
        now[0] += 0.3

    answers._answers.find = slow  # type: ignore[method-assign, assignment]
    while now[0] < 200:
        with suppress(SearchLimitError):
            assert answers.find("nobody") is None
        assert answers.find("chat-1") == KnownAnswer("req-1", 1.0)
        now[0] += 0.01
    assert 10 <= searched * 0.3 <= 12, "a tenth, and a burst of one second"


def test_a_slow_search_of_one_client_refuses_no_other(tmp_path: Path) -> None:
    now = [100.0]
    answers = KnownAnswers(answers_store(tmp_path), ratings_store(tmp_path), lambda: now[0])

    def slow(columns: Sequence[str], value: str) -> None:
        now[0] += 1.5

    answers._answers.find = slow  # type: ignore[method-assign, assignment]
    assert answers.find("nobody", "one") is None
    with pytest.raises(SearchLimitError):
        answers.find("nobody", "one")
    assert answers.find("nobody", "another") is None
    refused = 0
    for number in range(100):  # many clients together take half of the time
        with suppress(SearchLimitError):
            answers.find("nobody", str(number))
            continue
        refused += 1
        now[0] += 0.5
    assert 40 <= refused <= 80


def test_what_cannot_be_kept_takes_nothing_else_along(tmp_path: Path) -> None:
    """Bodies that json reads and orjson does not write: a large integer, half a character."""
    large = b'{"prompt": "smile \\ud83d", "seed": 123456789012345678901}'
    half = b'{"id": "cmpl-\\ud83d", "choices": [{"text": "hi"}]}'
    feedback = {"answer_id": "chatcmpl-000003", "rating": "up"}
    ours, writers = socket.socketpair()
    pieces = [
        *frame(SETTINGS, {"config": CaptureConfig(retention_days=1e5, mask=()).model_dump(mode="json")}),
        *(piece for n in range(4) for piece in exchange_frame(_odd(n, {1: large}, {2: half}), captured=True)),
        *frame(FEEDBACK, {"id": "feedback-1"}, json.dumps(feedback).encode()),
    ]
    with ours, writers:
        ours.sendall(b"".join(pieces))
        ours.shutdown(socket.SHUT_WR)
        serve(writers, tmp_path)
        messages = [json.loads(line) for line in ours.recv(1 << 16).splitlines()]
    wanted = [f"req-{number:06d}" for number in range(4)]
    assert [number for report in messages for number in report["durable"]] == wanted
    assert {number: status for report in messages for number, (status, _) in report["feedback"].items()} == {"feedback-1": 200}
    assert answers_store(tmp_path).read()["id"].to_pylist() == wanted
    sampling = {row["id"]: row["sampling"] for row in exchanges_store(tmp_path).read().to_pylist()}
    assert sorted(sampling) == [wanted[0], wanted[1], wanted[3]]
    assert "123456789012345678901" in sampling[wanted[1]]


def _odd(number: int, requests: dict[int, bytes], answers: dict[int, bytes]) -> Exchange:
    odd = {"request": requests.get(number), "answer": answers.get(number)}
    return exchange(number, **{side: body for side, body in odd.items() if body is not None})


def test_the_socket_of_a_writer_may_have_any_descriptor(tmp_path: Path) -> None:
    """A gateway with a thousand clients passes on a high one, which select does not take."""
    ours, writers = socket.socketpair()
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 2100), hard))
    try:
        with writers, socket.socket(fileno=fcntl.fcntl(writers.fileno(), fcntl.F_DUPFD, 2000)) as high:
            settings = {"config": CaptureConfig(mask=()).model_dump(mode="json")}
            ours.sendall(b"".join([*frame(SETTINGS, settings), *exchange_frame(exchange(1), captured=True)]))
            ours.close()
            serve(high, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert answers_store(tmp_path).read().num_rows == 1


def test_conversations_are_sampled_whole_and_by_their_own_hash() -> None:
    names = [f"conversation {n}".encode() for n in range(4000)]
    sampled = [name for name in names if is_sampled(name, 0.25)]
    assert 900 < len(sampled) < 1100
    assert sampled == [name for name in names if is_sampled(name, 0.25)]
    assert set(sampled) < {name for name in names if is_sampled(name, 0.5)}
    assert all(is_sampled(name, 1.0) for name in names[:10])


@pytest.mark.usefixtures("forked")
def test_what_waits_for_a_stuck_writer_is_bounded_and_counted(tmp_path: Path) -> None:
    async def scenario() -> Capture:
        capture = Capture(tmp_path, CaptureConfig(retention_days=1e5, mask=()), max_open_bytes=200_000)
        await capture.start()
        _writer_of(capture).suspend()
        for number in range(400):
            capture.record(exchange(number, "word " * 200))
        _writer_of(capture).resume()
        await capture.close()
        return capture

    capture = asyncio.run(scenario())
    num_rows = exchanges_store(tmp_path).read().num_rows
    assert 10 < num_rows < 400
    assert capture.lost == 400 - num_rows
    assert answers_store(tmp_path).read().num_rows == 400
    summary = summarize(tmp_path)
    assert summary.dropped == capture.lost
    assert f"{capture.lost} exchanges recorded without content" in "\n".join(map(str, lines_of("run", summary, None, 0)))


@pytest.mark.usefixtures("forked")
def test_an_answer_waits_until_its_record_outlives_the_gateway_but_not_for_a_stuck_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_module, "HAND_OVER_SECONDS", 0.3)
    exchanges = [exchange(number, "word " * 2000) for number in range(200)]  # more than the socket takes

    async def scenario() -> tuple[bool, float, float]:
        capture = Capture(tmp_path, CaptureConfig(retention_days=1e5, mask=()))
        await capture.start()
        began = asyncio.get_running_loop().time
        _writer_of(capture).suspend()
        for each in exchanges:
            capture.record(each)
        start = began()
        await asyncio.gather(capture.handed_over(), capture.handed_over())
        waited, start = began() - start, began()
        await capture.handed_over()
        again = began() - start
        _writer_of(capture).kill()  # the next one takes all of it
        while capture._stuck:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(capture_module, "HAND_OVER_SECONDS", 60)
        await capture.handed_over()
        handed_over = not capture._unsent and not capture._sending
        await capture.close()
        return handed_over, waited, again

    handed_over, waited, again = asyncio.run(scenario())
    assert handed_over
    assert waited >= 0.3
    assert again < 0.1
    assert exchanges_store(tmp_path).read().num_rows == len(exchanges)


class Disk:
    """A disk that is full or not."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full, self.refused, append = True, 0, Spool.append

        def written(spool: Spool, rows: Sequence[dict[str, Any]]) -> None:
            if self.full:
                self.refused += 1
                raise OSError(28, "No space left on device")
            append(spool, rows)

        patch.setattr(Spool, "append", written)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0.01)
    return Disk(monkeypatch)


def _writer(folder: Path, count: int) -> tuple[socket.socket, threading.Thread]:
    ours, writers = socket.socketpair()
    pieces = [*frame(SETTINGS, {"config": CaptureConfig(retention_days=1e5, mask=()).model_dump(mode="json")})]
    pieces += [piece for n in range(count) for piece in exchange_frame(exchange(n), captured=True)]

    def work() -> None:
        with writers:
            serve(writers, folder)

    thread = threading.Thread(target=work)
    thread.start()
    ours.sendall(b"".join(pieces))
    return ours, thread


def test_records_resume_when_the_disk_has_room_again(tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    ours, thread = _writer(tmp_path, 5)
    until(lambda: disk.refused >= 3, Patience.SIGNAL)
    disk.full = False
    assert json.loads(ours.recv(1 << 16))["durable"] == [f"req-{n:06d}" for n in range(5)]
    ours.close()
    thread.join()
    assert exchanges_store(tmp_path).read().num_rows == answers_store(tmp_path).read().num_rows == 5
    assert caplog.text.count("No space left") == 1, "it says so once"


def test_a_writer_ends_with_its_gateway_though_the_disk_is_full(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    ours, thread = _writer(tmp_path, 5)
    until(lambda: disk.refused >= 3, Patience.SIGNAL)
    ours.sendall(b"".join(exchange_frame(exchange(9), captured=True)))  # not read yet
    ours.close()
    until(lambda: not thread.is_alive(), Patience.SIGNAL)
    assert caplog.text.count("6 exchanges and ratings were dropped") == 1

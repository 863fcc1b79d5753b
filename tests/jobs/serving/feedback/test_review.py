"""The review page: reviewers are blind, nothing that they judged is lost, nobody else gets in, no answer becomes a script."""

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.chat.config import ChatConfig
from ropewalk.datapipe.chat.conversation import conversation_of
from ropewalk.jobs.serving.feedback.exchange import Exchange
from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.feedback.records import FOLDER, judgements_store
from ropewalk.jobs.serving.feedback.review.export import reviewed_conversations, reviewed_pairs
from ropewalk.jobs.serving.feedback.review.items import find_items
from ropewalk.jobs.serving.feedback.review.judgements import agreements, current_judgements, kappa
from ropewalk.jobs.serving.feedback.review.samples import Sampler, endpoint
from ropewalk.jobs.serving.feedback.review.server import ReviewServer
from ropewalk.jobs.serving.feedback.review.session import Review
from ropewalk.jobs.serving.feedback.store import Writer
from ropewalk.jobs.training.align.preferences.records import Preference, pair_of
from tests.jobs.serving.feedback.exchanges import exchange
from tests.jobs.serving.feedback.runs import serving_run
from tests.jobs.shell import Shell
from tests.patience import ended


def asked(number: int, question: str, answer: str, version: int) -> Exchange:
    messages = [{"role": "user", "content": question}]
    return exchange(number, request=json.dumps({"messages": messages}).encode(), answered=answer, version=f"chat@{version}")


def pairs_of(count: int) -> list[Exchange]:
    """`count` questions, each answered by two versions."""
    return [asked(2 * n + v, f"Question {n}?", f"Answer {n} of {v}", v) for n in range(count) for v in (0, 1)]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return serving_run(tmp_path / "runs", pairs_of(6), mask=[])


def test_two_versions_meet_and_no_place_tells_which_is_which(tmp_path: Path) -> None:
    same = [asked(500 + n, "Same?", "Yes", n % 2) for n in range(3)]
    three = [asked(600 + n, "Three?", f"Answer {n}", n // 2) for n in range(3)]
    captured = list(exchanges(serving_run(tmp_path, [*pairs_of(100), *same, *three]).path))
    items = find_items(captured, {})
    assert [item.id for item in items] == [item.id for item in find_items(captured[::-1], {})]
    assert [item.id for item in items] != sorted(item.id for item in items)
    pairs = [item for item in items if item.second]
    assert len(pairs) == 101
    assert all(item.second and item.first.version != item.second.version for item in pairs)
    assert len(items) - len(pairs) == 2  # the third of three; of those that say the same, one
    on_the_left = [item.sides("ann")[0].version for item in pairs]
    assert 30 < on_the_left.count("chat@0") < 71
    assert on_the_left != [item.sides("bob")[0].version for item in pairs]


def test_votes_on_other_answers_are_not_added_up(tmp_path: Path) -> None:
    """Between two reviewers, another second answer to the same question was captured."""
    run = serving_run(tmp_path / "runs", [asked(n, "Which?", f"Answer {n}", n) for n in range(3)], mask=[])
    messages = {"ann": ("req-000001", "first"), "bob": ("req-000002", "second"), "cat": ("req-000002", "second")}
    with Writer(judgements_store(run.path / FOLDER), 1 << 20, 3600) as writer:
        about = {"item": "req-000000", "first": "req-000000", "corrected": None, "correction": None, "undone": None}
        for number, (who, (second, choice)) in enumerate(messages.items()):
            writer.append([{**about, "id": who, "time": float(number), "reviewer": who, "second": second, "choice": choice}])
    created = reviewed_pairs(run).records
    results = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"], pair["reviewers"]) for pair in created]
    assert results == [("Answer 0", "Answer 1", 1), ("Answer 2", "Answer 0", 2)]


def test_judgements_become_pairs_and_conversations(run: RunDir) -> None:
    ann, bob = Review(run, "ann", ()), Review(run, "bob", ())
    messages = {"first": ["first", "first"], "tie": ["both", "both"], "split": ["first", "second"], "skip": ["skip", "second"]}
    order = find_items(exchanges(run.path), {})
    for item, entry in zip(order, messages.values(), strict=False):
        for review, choice in zip((ann, bob), entry, strict=True):
            left_is_first = item.left_is_first(review.reviewer)
            word = {"first": "left" if left_is_first else "right", "second": "right" if left_is_first else "left"}.get(
                choice, choice
            )
            current = review.current()
            assert current is not None
            assert current.id == item.id
            assert review.judge(item.id, word)
            assert not review.judge(item.id, word)  # a second press
    assert ann.judge(order[4].id, "left", "left", "Corrected") is True
    created = reviewed_pairs(run)
    assert all(isinstance(pair_of(record), Preference) for record in created.records)
    chosen = {record["id"]: record["chosen"][0]["content"] for record in created.records}
    second = order[3].second
    assert second is not None
    assert chosen[order[0].id] == order[0].first.answer[0]["content"]  # type: ignore[index]
    assert chosen[order[3].id] == second.answer[0]["content"]  # type: ignore[index]
    assert [record["reviewers"] for record in created.records if record["id"] == order[0].id] == [2]
    assert created.left_out == {"equally_good": 1, "reviewers_disagree": 1}
    assert [r["rejected"] for r in created.records if r["chosen"][0]["content"] == "Corrected"] == [
        order[4].sides("ann")[0].answer
    ]
    (chat,) = reviewed_conversations(run).records
    assert conversation_of(chat, ChatConfig()).messages[-1]["content"] == "Corrected"
    (result,) = ann.agreements()
    assert (result.reviewers, result.equal.n) == (("ann", "bob"), 3)
    assert result.equal.value == pytest.approx(2 / 3)
    for review in (ann, bob):
        review.close()
    assert judgements_store(run.path / FOLDER).read().num_rows == 9
    assert len(reviewed_pairs(run).records) == len(created.records)


def test_cohens_kappa_is_his() -> None:
    table = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    assert kappa(table) == pytest.approx(0.4)
    assert kappa([("a", "a")] * 5) is None
    assert agreements({"ann": {}, "bob": {}}) == []


def test_an_undo_brings_the_item_back_and_a_restart_goes_on(run: RunDir) -> None:
    first = Review(run, "ann", ())
    order = [item.id for item in find_items(exchanges(run.path), {})]
    for number in order[:3]:
        first.judge(number, "left")
    assert first.undo()
    current = first.current()
    assert current is not None
    assert current.id == order[2]  # its process is killed here: nothing is closed
    again = Review(run, "ann", ())
    assert again.progress()[:2] == (2, 6)
    assert again.undo()
    assert again.undo()
    assert not again.undo()
    current = again.current()
    assert current is not None
    assert current.id == order[0]
    assert current_judgements(judgements_store(run.path / FOLDER).read().to_pylist())["ann"] == {}


def test_corrections_are_masked_before_they_are_written(run: RunDir) -> None:
    review = Review(run, "ann", ("email",))
    current = review.current()
    assert current is not None
    review.judge(current.id, "left", "right", "Ask jane.doe@mail.example.org")
    review.close()
    (row,) = judgements_store(run.path / FOLDER).read().to_pylist()
    assert row["correction"] == "Ask <EMAIL>"
    assert row["corrected"] == current.sides("ann")[1].id  # type: ignore[union-attr]


class Client:
    """A browser's requests, without a browser."""

    def __init__(self, server: ReviewServer) -> None:
        self.server, self.cookie, self.host = server, "", urlsplit(server.address).netloc

    def __call__(self, path: str, form: dict[str, str] | None = None, **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection(urlsplit(self.server.address).netloc, timeout=30)
        sent = {
            "Host": self.host,
            "Cookie": self.cookie,
            **({"Origin": f"http://{self.host}"} if form is not None else {}),
            **headers,
        }
        body = urlencode(form) if form is not None else None
        connection.request("POST" if form is not None else "GET", path, body, {k: v for k, v in sent.items() if v})
        answer = connection.getresponse()
        result = answer.status, dict(answer.headers), answer.read().decode()
        connection.close()
        return result

    def enter(self) -> int:
        status, headers, _ = self(self.server.link().removeprefix(self.server.address))
        self.cookie = headers.get("Set-Cookie", "").split(";")[0]
        return status


@pytest.fixture
def client(run: RunDir) -> Iterator[Client]:
    review = Review(run, "ann", ())
    server = ReviewServer(review, list)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Client(server)
    server.shutdown()
    thread.join()
    server.server_close()
    review.close()


def test_the_page_is_blind_and_has_nothing_from_elsewhere(client: Client, run: RunDir) -> None:
    assert client.enter() == 303
    status, headers, page = client("/")
    assert status == 200
    for captured in exchanges(run.path):
        assert captured.version not in page
    assert "http" not in page.replace('http-equiv="', "")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path, kind in (("/review.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, body = client(path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert "http" not in body
    assert client("/nothing")[0] == 404


def test_nobody_else_gets_in(client: Client, run: RunDir) -> None:
    link = client.server.link().removeprefix(client.server.address)
    assert client("/")[0] == 403
    assert client("/?token=guess")[0] == 403
    assert client(link)[0] == 303
    status, _, page = client(link)  # once
    assert status == 403
    assert "for a new one" in page
    client.enter()
    page = client("/")[2]
    csrf = page.split('name="csrf" value="')[1].split('"')[0]
    item = page.split('name="item" value="')[1].split('"')[0]
    good = {"csrf": csrf, "item": item, "choice": "left"}
    stranger = "http://evil.example"
    assert client("/judge", good, Origin=stranger)[0] == 403
    assert client("/judge", good, Origin="null")[0] == 403
    assert client("/judge", good, Origin="")[0] == 403
    assert client("/judge", good, Cookie="")[0] == 403
    assert client("/judge", {**good, "csrf": "guess"})[0] == 403
    assert client("/judge", good, Host="evil.example:80", Origin="http://evil.example:80")[0] == 421
    assert client("/", Host="evil.example:80")[0] == 421
    assert client("/judge", {**good, "correction_left": "x" * (1 << 20)})[0] == 413
    assert judgements_store(run.path / FOLDER).read().num_rows == 0
    assert client("/judge", {**good, "choice": "nonsense"})[0] == 303
    assert client("/judge", good)[0] == 303
    assert client("/judge", good)[0] == 303  # pressed twice
    assert judgements_store(run.path / FOLDER).read().num_rows == 1
    assert client("/undo", {"csrf": "guess"})[0] == 403
    assert client("/undo", {"csrf": csrf})[0] == 303
    assert judgements_store(run.path / FOLDER).read().num_rows == 2


class _Endpoint(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], body))  # type: ignore[attr-defined]
        message = {"role": "assistant", "content": "Mail jane.doe@mail.example.org"}
        answer = json.dumps({"id": "x", "choices": [{"index": 0, "message": message}]}).encode()
        broken = "Question 1?" in json.dumps(body)
        self.send_response(503 if broken else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_a_second_answer_is_drawn_from_the_endpoint_masked_and_kept(tmp_path: Path) -> None:
    run = serving_run(tmp_path, [asked(0, "Question 0?", "One", 0), asked(1, "Question 1?", "Two", 0)])
    with HTTPServer(("127.0.0.1", 0), _Endpoint) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        ask = endpoint(f"http://127.0.0.1:{server.server_address[1]}", "word")
        review = Review(run, "ann", (), Sampler(run.path, ask, ("email",)))
        observed = []
        while item := review.current():
            observed.append(
                (item.prompt[0]["content"], [side and side.answer[0]["content"] for side in (item.first, item.second)])
            )  # type: ignore[index]
            review.judge(item.id, "left" if item.left_is_first("ann") else "right")
        server.shutdown()
    assert sorted(observed) == [("Question 0?", ["One", "Mail <EMAIL>"]), ("Question 1?", ["Two", None])]
    assert review.sampler is not None
    assert "503" in review.sampler.error
    path, token, body = next(entry for entry in server.asked if "Question 0?" in str(entry))  # type: ignore[attr-defined]
    assert (path, token, body["store"], body["model"]) == ("/v1/chat/completions", "Bearer word", False, "production")
    review.close()
    (pair,) = [record for record in reviewed_pairs(run).records if record["id"] == "req-000000"]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("One", "Mail <EMAIL>")


def test_the_command_serves_until_it_is_asked_to_end_and_writes_the_files(run: RunDir, shell: Shell) -> None:
    review = Review(run, "ann", ())
    current = review.current()
    assert current is not None
    review.judge(current.id, "left")
    review.close()
    command = [sys.executable, "-m", "ropewalk.jobs.cli", "review", str(run.path), "--reviewer", "ann"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{run.id}: 5 items to judge for ann, 1 judged\n"
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    assert "elsewhere first run: ssh -NL" in process.stdout.readline()
    assert "Ctrl-C or SIGTERM ends" in process.stdout.readline()
    process.terminate()
    assert ended(process) == 0
    folder = run.path / "feedback/review"
    assert process.stdout.read().splitlines()[0] == f"1 record → {folder / 'pairs.jsonl'}"
    process.stdout.close()
    assert len((folder / "pairs.jsonl").read_text().splitlines()) == 1
    empty = RunDir.create("serve", {"job": "serve", "cluster": "local", "config": {}, "resources": {"nodes": 1}})
    assert "has captured no exchanges" in shell.mistake("review", empty.id)

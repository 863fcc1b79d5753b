"""Each cause reaches each receiver under one id, however often the sender is killed; secrets stay in the user's file."""

import json
import multiprocessing
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.orchestration.command.config import CommandConfig
from ropewalk.jobs.runs.notify import notifier as notifier_module
from ropewalk.jobs.runs.notify.causes import causes
from ropewalk.jobs.runs.notify.config import AnyTarget, AppriseTarget, CommandTarget, Mail, MailTarget, read_targets
from ropewalk.jobs.runs.notify.notifier import ARRAYS, Notifier, wants_notice
from ropewalk.jobs.runs.notify.outbox import message
from ropewalk.jobs.runs.notify.relay import NoticeRelay
from ropewalk.jobs.runs.notify.send import EVENT_HEADER, SIGNATURE_HEADER, TIME_HEADER, send, signature, try_targets
from ropewalk.jobs.runs.submit.notification import NOTIFY_SIDECAR
from ropewalk.jobs.runs.submit.submit import submit
from tests.patience import Patience, until

KEY = "hush-hush-4711"
FORK = multiprocessing.get_context("fork")


class Receiver:
    """An HTTP server that notes what it accepted; while it is `away` it answers 503."""

    def __init__(self) -> None:
        self.accepted: list[dict[str, Any]] = []
        self.away, self.signed = False, True
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.away:
                    self.send_error(503)
                    return
                values = json.loads(body)
                if receiver.signed:
                    assert self.headers[SIGNATURE_HEADER] == signature(KEY, self.headers[TIME_HEADER], body)
                    assert values["id"] == self.headers[EVENT_HEADER]
                receiver.accepted.append(values)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/secret-path"

    @property
    def ids(self) -> list[str]:
        return [values["id"] for values in self.accepted]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> list[AnyTarget]:
    """The receiver as the user's only one."""
    everything = ["failed", "hung", "gave_up", "succeeded", "slow", "preempted_too_often"]
    write_file(tmp_path, monkeypatch, {"name": "hook", "webhook": receiver.address, "key": KEY, "events": everything})
    return list(read_targets())


def write_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *targets: dict[str, Any], mode: int = 0o600) -> Path:
    path = tmp_path / "notify.yaml"
    path.write_text(yaml.safe_dump({"targets": list(targets)}))
    path.chmod(mode)
    monkeypatch.setenv("ROPEWALK_NOTIFY", str(path))
    return path


def make_run(root: Path, **record: Any) -> RunDir:
    run = RunDir.create(
        "noted", {"job": "command", "config": {}, "engine": "ranks", "sidecars": [NOTIFY_SIDECAR], **record}, root
    )
    run.begin_attempt(opened_by="submission")
    return run


def hang(run: RunDir, step: int) -> None:
    stuck = {"rank": 1, "where": "read", "phase": "step", "state": "sleeping"}
    run.event("ranks_hung", attempt=1, group=1, node=0, step=step, seconds=9.0, ranks=[stuck], stacks="x")


def end(run: RunDir, state: RunState, cause: str = "done", exit_code: int = 1) -> Outcome:
    outcome = Outcome(state=state, exit_code=exit_code, cause=cause, ended=time.time())
    run.write_outcome(run.attempts()[-1], outcome)
    return outcome


def look_forever(path: Path) -> None:
    notifier = Notifier(RunDir(path), read_targets())
    while True:
        notifier.look(None)
        time.sleep(0.001)


KILLS = [6, pytest.param(100, marks=pytest.mark.soak("a hundred kills; make test has six"))]


@pytest.mark.parametrize("kills", KILLS)
def test_killed_senders_lose_no_cause_and_repeat_at_most_one_a_kill(
    kills: int, tmp_path: Path, targets: list[AnyTarget], receiver: Receiver
) -> None:
    run, chance = make_run(tmp_path / "runs"), random.Random(kills)
    for number in range(kills):
        for step in (2 * number, 2 * number + 1):
            hang(run, step)
        before = len(receiver.accepted)
        sender = FORK.Process(target=look_forever, args=(run.path,))
        sender.start()
        if number % 2:  # while a message is on its way, or has just been accepted
            until(lambda before=before: len(receiver.accepted) > before, Patience.START)
        time.sleep(chance.uniform(0, 0.02))
        sender.kill()
        sender.join()
    notifier = Notifier(run, targets)
    until(lambda: notifier.look(None), Patience.SIGNAL)
    times = Counter(receiver.ids)
    assert set(times) == {each.id for each in causes(run, None)}
    assert len(times) == 2 * kills
    assert sum(times.values()) - len(times) <= kills
    first = [each for number, each in enumerate(receiver.ids) if each not in receiver.ids[:number]]
    assert first == [each.id for each in causes(run, None)], "in order"


def test_a_day_without_network_delays_and_keeps_the_order(
    tmp_path: Path, targets: list[AnyTarget], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, now = make_run(tmp_path / "runs"), [1000.0]
    monkeypatch.setattr(notifier_module.time, "monotonic", lambda: now[0])
    receiver.away = True
    notifier = Notifier(run, targets)
    for step in range(5):
        hang(run, step)
        assert not notifier.look(None)
        now[0] += 86400 / 5
    notifier.close()
    receiver.away = False
    later = Notifier(run, targets)  # of the next attempt
    assert later.look(None)
    assert receiver.ids == [each.id for each in causes(run, None)]
    assert later.look(None)
    assert len(receiver.ids) == 5


def test_an_array_that_fails_is_one_digest(tmp_path: Path, targets: list[AnyTarget], receiver: Receiver) -> None:
    runs = [make_run(tmp_path / "runs", submission={"id": "abc", "runs": 30}) for _ in range(30)]
    for run in runs:
        notifier = Notifier(run, targets)
        ending = end(run, RunState.FAILED, "rank 0: ValueError: no")
        notifier.look(ending)
        notifier.close()
    (digest,) = receiver.accepted
    assert digest["title"].startswith("failed: 30 of 30 runs")
    assert len(digest["causes"]) == 30
    assert (tmp_path / "runs" / ARRAYS / "abc").stat().st_mode & 0o077 == 0
    again = Notifier(runs[0], targets)
    again.look(runs[0].last_outcome())
    assert len(receiver.accepted) == 1


def test_kinds(tmp_path: Path) -> None:
    def kinds(run: RunDir, ending: Outcome | None = None) -> list[str]:
        return [each.kind for each in causes(run, ending)]

    run = make_run(tmp_path)
    assert kinds(run) == []
    for _ in range(6):
        end(run, RunState.PREEMPTED, exit_code=85)
        run.begin_attempt(opened_by="requeue")
    assert kinds(run) == ["preempted_too_often"] * 2, "at three and at six"
    assert kinds(run, end(run, RunState.SUCCEEDED, exit_code=0))[2:] == ["succeeded"]
    assert kinds(run, end(run, RunState.FAILED, exit_code=143))[2:] == ["gave_up"]
    assert kinds(run, end(run, RunState.FAILED, exit_code=1))[2:] == ["failed"]
    assert not wants_notice(make_run(tmp_path, sidecars=[]))
    assert not wants_notice(make_run(tmp_path, parent=run.id)), "its parent reports it"


def test_a_relay_sends_what_no_sidecar_could(tmp_path: Path, targets: list[AnyTarget], receiver: Receiver) -> None:
    run, silent = make_run(tmp_path / "runs"), make_run(tmp_path / "runs", sidecars=[])
    for each in (run, silent):
        end(each, RunState.FAILED, "node 0 died")
    errors: list[str] = []
    relay = NoticeRelay(errors.append)
    relay.look([tmp_path / "runs"])
    assert [values["run"] for values in receiver.accepted] == [run.id]
    assert errors == []


def test_secrets_stay_in_the_file(
    tmp_path: Path,
    targets: list[AnyTarget],
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "runs")
    receiver.away = True
    Notifier(run, targets).look(end(run, RunState.FAILED, "cannot open https://me:planted-word@host/x"))
    receiver.away = False
    Notifier(run, targets).look(run.last_outcome())
    written = "".join(path.read_text() for path in run.path.rglob("*") if path.is_file() and path.name != "outcome.json")
    output = capfd.readouterr()
    for secret in (KEY, "secret-path"):
        assert secret not in f"{written}{caplog.text}{output.out}{output.err}{targets!r}"
    assert "planted-word" not in json.dumps(receiver.accepted)
    assert "hook: HTTPError 503" in caplog.text


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    path = write_file(tmp_path, monkeypatch, {"name": "x", "command": ["true"]}, mode=mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        read_targets()


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ({"name": "x", "webhook": f"ftp://{KEY}", "key": KEY}, "must begin with https"),
        ({"name": "x", "webhook": "https://host", "key": KEY, "colour": KEY}, "Extra inputs"),
        ({"name": "x"}, "Field required"),
    ],
)
def test_mistakes_are_named_without_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, Any], problem: str
) -> None:
    write_file(tmp_path, monkeypatch, target)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_targets()
    assert KEY not in str(caught.value)


def test_commands_get_json_on_stdin_and_may_refuse(tmp_path: Path) -> None:
    notice, path = message("run-1", "failed", "key", "title", "text"), tmp_path / "got.json"
    send(CommandTarget(name="c", command=("sh", "-c", f"cat > {path}")), notice)
    assert json.loads(path.read_text())["id"] == notice.id
    with pytest.raises(BackendError, match="c: exit code 3"):
        send(CommandTarget(name="c", command=("sh", "-c", "exit 3")), notice)


def test_mail_has_the_id_of_the_event() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lines: list[str] = []
        thread = threading.Thread(target=take_mail, args=(listener, lines))
        thread.start()
        mail = Mail(host="127.0.0.1", port=listener.getsockname()[1], security="none", sender="a@x", to=("b@x", "c@x"))
        notice = message("run-1", "failed", "key", "failed: run-1", "it died")
        send(MailTarget(name="m", mail=mail), notice)
        thread.join()
    assert "rcpt TO:<c@x>" in lines
    assert f"Message-ID: <{notice.id}@ropewalk>" in lines
    assert "Subject: failed: run-1" in lines
    assert "it died" in lines


def take_mail(listener: socket.socket, lines: list[str]) -> None:
    """Accept one mail as a server without extensions would."""
    connection = listener.accept()[0]
    with connection, connection.makefile("rw", newline="\r\n") as stream:

        def say(text: str) -> None:
            stream.write(f"{text}\n")
            stream.flush()

        say("220 ready")
        in_text = False
        for raw in stream:
            line = raw.rstrip()
            lines.append(line)
            if in_text:
                if line == ".":
                    in_text = False
                    say("250 accepted")
            elif line.upper() == "DATA":
                in_text = True
                say("354 go on")
            else:
                say("221 bye" if line.upper() == "QUIT" else "250 ok")
                if line.upper() == "QUIT":
                    return


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_apprise_delivers(receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("apprise")
    address = f"json://127.0.0.1:{receiver.server.server_port}/"
    monkeypatch.setattr(receiver, "signed", False)
    send(AppriseTarget(name="a", apprise=SecretStr(address)), message("run-1", "failed", "key", "title", "text"))
    assert [values["title"] for values in receiver.accepted] == ["title"]
    with pytest.raises(ConfigError, match="a: apprise does not know"):
        send(AppriseTarget(name="a", apprise=SecretStr(f"nothing-{KEY}")), message("run-1", "failed", "key", "title", "text"))
    assert KEY not in caplog.text


def test_a_failed_run_tells_its_owner_and_holds_no_key(
    tmp_path: Path, targets: list[AnyTarget], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    config = CommandConfig.model_validate({"command": ["false"], "launch": "once", "retries": {"bugs": 0}})
    run = submit("command", config)
    until(lambda: run.last_outcome() is not None, Patience.RUN)
    until(lambda: receiver.accepted, Patience.START, (run.log_dir(1) / "notify.log").read_text)
    assert [(values["kind"], values["run"]) for values in receiver.accepted] == [("failed", run.id)]
    for path in run.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    until(lambda: not processes_of(run.path), Patience.START)


def test_a_test_message_reaches_each_receiver(targets: list[AnyTarget], receiver: Receiver) -> None:
    results = try_targets([*targets, CommandTarget(name="broken", command=("false",))])
    assert [(result.target, result.accepted) for result in results] == [("hook", True), ("broken", False)]
    assert [values["kind"] for values in receiver.accepted] == ["test"]
    assert os.environ["ROPEWALK_NOTIFY"]

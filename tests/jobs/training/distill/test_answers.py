"""A served teacher's answers: asked for once, whatever kills the run, and what cannot be learnt from is counted."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import ConfigError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.distill.answers.config import AnswersConfig
from ropewalk.jobs.training.distill.answers.job import main

TOKEN = "a-token-of-the-test"


class Teacher:
    """An OpenAI endpoint that repeats the last word; the first request of all finds it busy."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.busy = True
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, {"data": [{"id": "production"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    self._say(401, {})
                elif teacher.busy:
                    teacher.busy = False
                    self._say(503, {"error": "busy"})
                else:
                    self._say(*teacher.answer(body))

            def _say(self, status: int, value: dict[str, Any]) -> None:
                raw = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = body["messages"][-1]["content"]
        self.asked[prompt] += 1
        if prompt == "refuse":
            return 400, {"error": "no"}
        finish = "length" if prompt == "long" else "stop"
        return 200, {"choices": [{"message": {"role": "assistant", "content": f"{prompt}!"}, "finish_reason": finish}]}


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    teacher = Teacher()
    thread = threading.Thread(target=teacher.server.serve_forever)
    thread.start()
    yield teacher
    teacher.server.shutdown()
    teacher.server.server_close()
    thread.join()


def answers_run(tmp_path: Path, teacher: Teacher, **changes: Any) -> RunDir:
    records = [{"prompt": "one"}, {"prompt": "long"}, {"other": 1}, {"prompt": "refuse"}]
    records += [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "old"}]} for n in range(6)]
    records += [{"prompt": "one"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    config = {
        "endpoint": f"http://127.0.0.1:{teacher.server.server_port}/v1",
        "prompts": str(tmp_path / "prompts.jsonl"),
        "output": str(tmp_path / "out/answers.jsonl"),
        "auth": str(tmp_path / "token"),
        **changes,
    }
    return RunDir.create(
        "answers", {"job": "answers", "config": AnswersConfig(**config).model_dump(mode="json")}, tmp_path / "runs"
    )


def begin(run: RunDir, **changes: Any) -> JobContext:
    context = JobContext(run=run, attempt=run.begin_attempt(), **changes)
    context.fence.claim()
    return context


def test_each_prompt_is_answered_once_through_a_stop(teacher: Teacher, tmp_path: Path) -> None:
    run = answers_run(tmp_path, teacher, at_once=1, system="Be brief.")
    flag = tmp_path / "stop"
    answer = teacher.answer

    def stopping(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if len(teacher.asked) == 4:
            flag.touch()
        return answer(body)

    teacher.answer = stopping  # type: ignore[method-assign]
    with pytest.raises(StopRequested):
        main(begin(run, stop_flag=flag))
    flag.unlink()
    results = main(begin(run))
    assert results["answers"] == 8
    assert results["reasons"] == {"no_prompt": 1, "truncated": 1, "refused_400": 1}
    assert teacher.asked.pop("one") == 2, "two records that say the same"
    assert set(teacher.asked.values()) <= {1, 2}
    assert sum(teacher.asked.values()) <= len(teacher.asked) + 1, "but for one that was under way, none is asked twice"
    lines = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert [line["messages"][1]["content"] for line in lines] == ["one", *(f"q{n}" for n in range(6)), "one"]
    assert lines[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "q0"},
        {"role": "assistant", "content": "q0!"},
    ]
    before = dict(teacher.asked)
    assert main(begin(run)) == results, "what is done is not done again"
    assert before == dict(teacher.asked)
    assert TOKEN not in "".join(path.read_text() for path in run.path.rglob("*") if path.is_file())


def test_a_wrong_token_is_a_mistake_of_the_users(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHERS_TOKEN", "wrong")
    with pytest.raises(ConfigError, match=r"rejects the token \(401\); set auth"):
        main(begin(answers_run(tmp_path, teacher, auth="TEACHERS_TOKEN")))
    with pytest.raises(ConfigError, match="the environment variable NO_TOKEN is not set"):
        main(begin(answers_run(tmp_path, teacher, auth="NO_TOKEN")))

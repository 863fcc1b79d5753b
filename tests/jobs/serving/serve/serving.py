"""A serving run for tests, clients that ask it without a pause, and what became of each request."""

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from ropewalk.cluster.process.kill import processes_of
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.submit.submit import configure, submit
from ropewalk.jobs.serving.serve.files import ServingFiles
from tests.fakes.engine import fake_model
from tests.patience import Patience, until

ENGINE = [sys.executable, str(Path("tests/fakes/engine.py").absolute()), "{model}", "--host", "{host}", "--port", "{port}"]
ENGINE += ["--token-file", "{token_file}"]
MODEL = "words"


@dataclass
class Serving:
    """A run that serves an alias of a registry of its own."""

    run: RunDir
    home: Path

    @property
    def files(self) -> ServingFiles:
        return ServingFiles(self.run)

    @property
    def state(self) -> dict[str, Any]:
        return read_json(self.files.state) or {}

    @property
    def address(self) -> str:
        return str((read_json(self.files.address) or {})["address"])

    def said(self) -> str:
        logs = self.run.log_dir(self.run.attempts()[-1]) if self.run.attempts() else self.run.path
        texts = [f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in sorted(logs.glob("*.log"))]
        return "\n".join([json.dumps(self.state), *texts])

    def until(self, condition: Callable[[], Any], patience: Patience = Patience.RUN) -> Any:
        return until(condition, patience, self.said)

    def serves(self, version: str) -> None:
        """Wait until a version serves, and the gateway's routes say so."""
        self.until(lambda: self.state.get("stable") == version and self.replicas(version))

    def replicas(self, version: str) -> list[dict[str, Any]]:
        routes = read_json(self.files.routes) or {}
        return list(((routes.get("versions") or {}).get(version) or {}).get("replicas") or [])

    def promote(self, name: str, alias: str = "production", **keys: Any) -> str:
        """Put a model into the registry and have an alias point to it; the version."""
        folder = fake_model(self.home / name, says=name, **keys)
        return str(promote(str(folder), alias, name=MODEL, root=self.run.path.parent, force="a test").version_id)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.run.read_events() if event["event"] == kind]

    def processes(self, pattern: str) -> list[psutil.Process]:
        """Those of this run whose command line has these words."""
        return [each for each in processes_of(self.home) if pattern in " ".join(each.cmdline())]

    def stop(self) -> None:
        """Ask its supervisor to preempt it."""
        os.kill(int((read_json(self.run.path / "supervisor.json") or {})["pid"]), signal.SIGUSR2)


@contextmanager
def serving(home: Path, first: dict[str, Any] | None = None, **keys: Any) -> Iterator[Serving]:
    """A run on this machine that serves `production`, whose first version is called one; it ends with the block."""
    root = home / "runs"
    folder = fake_model(home / "one", says="one", **(first or {}))
    promote(str(folder), name=MODEL, root=root, force="a test")
    settings = {"model": "production", "engine_command": ENGINE, "resources.cpus": 2, "resources.grace_seconds": 30, **keys}
    run = submit("serve", configure("serve", None, [f"{key}={json.dumps(value)}" for key, value in settings.items()]))
    try:
        result = Serving(run, home)
        result.serves(f"{MODEL}@1")
        yield result
    finally:
        list(cancel_runs([run.id]))
        until(lambda: (outcome := run.last_outcome()) is not None and outcome.state.final)


def ask(address: str, prompt: str = "go on", *, stream: bool = True, seconds: float = 60.0, **more: Any) -> tuple[int, str]:
    """One chat completion; status and the words of the answer. Raises where the answer does not end as it should."""
    url = urlsplit(address)
    connection = HTTPConnection(str(url.hostname), url.port, timeout=seconds)
    try:
        body = {"messages": [{"role": "user", "content": prompt}], "stream": stream, "temperature": 0, **more}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        raw = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200:
        return answer.status, raw
    if not stream:
        return 200, str(json.loads(raw)["choices"][0]["message"]["content"])
    lines = [line[6:] for line in raw.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        raise HTTPException(f"the stream was cut: {raw[-200:]!r}")
    return 200, "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1])


@dataclass
class Load:
    """Clients in threads, each with one request after the other."""

    address: str
    words: int
    clients: int = 4
    pause: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)  # by the model that answered
    failures: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def calm(self, clients: int) -> None:
        """From now on so many clients ask."""
        self.clients = clients

    @property
    def count(self) -> int:
        """Answers so far."""
        return sum(self.answers.values())

    def _ask(self, number: int) -> None:
        while not self._over.is_set() and number < self.clients:
            try:
                status, text = ask(self.address, f"go on {random.random()}")  # each is a conversation of its own
            except (OSError, HTTPException, ValueError, KeyError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            parts = text.split()
            names = {word.rstrip("0123456789") for word in parts}
            if status != 200 or len(parts) != self.words or len(names) != 1:
                self.failures.append(f"{status}: {text[:300]}")
            else:
                self.answers[names.pop()] += 1
            time.sleep(self.pause)

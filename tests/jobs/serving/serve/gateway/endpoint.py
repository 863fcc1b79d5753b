"""An endpoint for tests: real gateways in front of engines that can be killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from ropewalk.jobs.serving.serve import child
from ropewalk.jobs.serving.serve.gateway import __main__ as _program  # noqa: F401 - imported before the gateways are forked
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.gateways import Gateways, address_of, listen
from ropewalk.jobs.serving.serve.routes import Alias, Replica, Routes, Version, write_routes
from tests.forked import FORKING
from tests.patience import Patience, until

VERSION = "tiny@1"
child.MAX_DEATHS = 10**6  # tests kill gateways more often than that
child.subprocess = FORKING  # type: ignore[attr-defined]  # test_serving.py has gateways that start as those of a run
# certificates, which nobody needs here, take a client longer to read than all else
HTTP = httpx.Client(timeout=60, verify=False)
get, post, open_stream = (partial(call, timeout=60, verify=False) for call in (httpx.get, httpx.post, httpx.stream))  # unshared


class FakeEngine:
    """A process of tests.fakes.answering_engine."""

    def __init__(self, *arguments: str, port: int = 0, engine: str = "transformers", slots: int = 4) -> None:
        self.words, self.engine, self.slots = arguments, engine, slots
        self.hold = Path(arguments[arguments.index("--hold") + 1]) if "--hold" in arguments else None
        self.generation = 0
        self.start(port)

    def start(self, port: int) -> None:
        command = [sys.executable, "-S", "-m", "tests.fakes.answering_engine", str(port), "--slots", str(self.slots), *self.words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.generation += 1

    @property
    def replica(self) -> Replica:
        return Replica(
            id=f"r{self.port}-{self.generation}", url=f"http://127.0.0.1:{self.port}", engine=self.engine, slots=self.slots
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def restart(self) -> None:
        self.kill()
        self.start(self.port)

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = HTTP.get(f"http://127.0.0.1:{self.port}/health").json()
        return answer


class Endpoint:
    """Gateways, their files, and their engines."""

    def __init__(
        self,
        folder: Path,
        engines: list[FakeEngine],
        *,
        environment: dict[str, str] | None = None,
        publish: bool = True,
        **settings: Any,
    ) -> None:
        self.folder, self.engines = folder, engines
        folder.mkdir(parents=True, exist_ok=True)
        self.routes_file, self.load_file, self.log_file = folder / "routes.json", folder / "load.json", folder / "log"
        if publish:
            self.publish()
        self.gateways = start_gateways(folder, environment=environment, load_file=self.load_file, **settings)
        self.port: int = self.gateways.socket.getsockname()[1]
        self.url = address_of(self.gateways.socket, "https" if "tls" in settings else "http")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        until(lambda: "serving" in self.log(), Patience.START, self.log)

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            self.gateways.look()

    def publish(self, engines: list[FakeEngine] | None = None, **routes: Any) -> None:
        version = Version(replicas=tuple(item.replica for item in (self.engines if engines is None else engines)))
        aliases = {"production": Alias(stable=VERSION)}
        write_routes(
            self.routes_file, Routes(**{"versions": {VERSION: version}, "aliases": aliases, "default": "production", **routes})
        )

    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def pids(self) -> list[int]:
        """Processes of the gateways: the one that serves and the spare one."""
        return self.gateways.pids

    def live(self) -> int:
        """The process of the gateway that serves."""
        pid = until(lambda: self.gateways.serving_pid, Patience.START, self.log)
        return int(until(lambda: psutil.pid_exists(pid) and self.gateways.serving_pid, Patience.START, self.log))

    def kill_gateway(self) -> None:
        os.kill(self.live(), signal.SIGKILL)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.gateways.end(seconds=10.0)
        for engine in self.engines:
            engine.kill()


def start_gateways(folder: Path, *, environment: dict[str, str] | None = None, **settings: Any) -> Gateways:
    """Gateways at a free port."""
    value = GatewaySettings(routes=folder / "routes.json", **{"drain_seconds": 5.0, **settings})
    (folder / "settings.json").write_text(value.model_dump_json())
    return Gateways(listen("127.0.0.1", 0), folder / "settings.json", folder / "log", environment or {})


def chat(text: str, **keys: Any) -> dict[str, Any]:
    """The body of a greedy chat request."""
    return {"model": VERSION, "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True, **keys}


def texts(stream: bytes) -> str:
    """The text of a stream."""
    results = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: ") and line != b"data: [DONE]"]
    choices = [choice for item in results for choice in json.loads(item)["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)

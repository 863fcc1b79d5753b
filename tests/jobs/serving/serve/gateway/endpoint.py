"""An endpoint for tests: a real keeper with its gateways, in front of engines that can be killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings
from ropewalk.jobs.serving.serve.routes import Alias, Replica, Routes, Version, write_routes
from tests.patience import Patience, ended, until

VERSION = "tiny@1"
# certificates, which nobody needs here, take a client longer to read than all else
HTTP = httpx.Client(timeout=60, verify=False)


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
    """A keeper, its files, and its engines."""

    def __init__(
        self, folder: Path, engines: list[FakeEngine], *, environment: dict[str, str] | None = None, **settings: Any
    ) -> None:
        self.folder, self.engines = folder, engines
        folder.mkdir(parents=True, exist_ok=True)
        self.routes_file, self.address_file = folder / "routes.json", folder / "address.json"
        self.load_file = folder / "load.json"
        self.publish()
        self.keeper = self.start_only(folder, environment=environment, load_file=self.load_file, **settings)
        until(self.address_file.exists, Patience.START, self.said)
        self.url: str = json.loads(self.address_file.read_bytes())["address"]
        self.port: int = json.loads(self.address_file.read_bytes())["port"]

    @staticmethod
    def start_only(folder: Path, *, environment: dict[str, str] | None = None, **settings: Any) -> subprocess.Popen[bytes]:
        """A keeper, which may end at once."""
        files = {"routes": folder / "routes.json", "address_file": folder / "address.json"}
        value = GatewaySettings(**files, **{"drain_seconds": 5.0, "journal_bytes": 2**26, **settings})
        (folder / "settings.json").write_text(value.model_dump_json())
        command = [sys.executable, "-m", "ropewalk.jobs.serving.serve.gateway", str(folder / "settings.json")]
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})

    def publish(self, engines: list[FakeEngine] | None = None, **routes: Any) -> None:
        version = Version(replicas=tuple(item.replica for item in (self.engines if engines is None else engines)))
        aliases = {"production": Alias(stable=VERSION)}
        write_routes(
            self.routes_file, Routes(**{"versions": {VERSION: version}, "aliases": aliases, "default": "production", **routes})
        )

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def gateways(self) -> list[int]:
        """Processes of gateways: the live one and the spare one."""
        return [int(word) for word in Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()]

    def live(self) -> int:
        """The process of the gateway that leads: the one with the journal mapped."""
        return int(until(lambda: next((pid for pid in self.gateways() if _leads(pid)), None), Patience.START, self.said))

    def kill_gateway(self) -> None:
        os.kill(self.live(), signal.SIGKILL)

    def close(self) -> None:
        if self.keeper.poll() is None:
            self.keeper.send_signal(signal.SIGTERM)
            ended(self.keeper)
        for engine in self.engines:
            engine.kill()


def _leads(pid: int) -> bool:
    try:
        return "ropewalk-journal" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def chat(text: str, **keys: Any) -> dict[str, Any]:
    """The body of a greedy chat request."""
    return {"model": VERSION, "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True, **keys}


def texts(stream: bytes) -> str:
    """The text of a stream."""
    results = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: ") and line != b"data: [DONE]"]
    choices = [choice for item in results for choice in json.loads(item)["choices"]]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)

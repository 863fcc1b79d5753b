"""End of a leaving replica's engine: by its own count, else by the gateway's, else at its time limit."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

import ropewalk.jobs.serving.serve.replica as replica_module
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, EngineError, EngineOptions
from ropewalk.jobs.inference.engines.process import EngineProcess
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.engine_command import CommandEngine
from ropewalk.jobs.serving.serve.replica import Replica, ReplicaSpec, RunningRequests, count_running, wait_until_drained
from tests.fakes.engine import fake_model
from tests.jobs.serving.serve.serving import ENGINE
from tests.patience import HANG_SECONDS


class Silent(BaseHTTPRequestHandler):
    """An engine whose health has no body, as vLLM's."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Health."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def silent() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("ahead_seconds", [0.0, 60.0, -60.0])
def test_an_engine_that_does_not_count_is_drained_by_the_gateways_count(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_seconds: float
) -> None:
    """The gateway may run on another machine, whose clock is not this one's."""
    monkeypatch.setattr(replica_module, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(replica_module, "LOOK_SECONDS", 0.01)
    load = tmp_path / "load.json"

    def look() -> RunningRequests | None:
        return count_running(silent, None, load, "r1")

    def tell(**running: int) -> None:
        counts = {name: {"running": n} for name, n in running.items()}
        write_json(load, {"time": time.time() + ahead_seconds, "replicas": counts}, durable=False)

    def look_while_told(**running: int) -> RunningRequests | None:
        tell(**running)
        return look()

    assert look() is None
    assert not wait_until_drained(look, 0.3), "nobody says: its time is waited out"
    assert (result := look_while_told(r1=2, r2=1))
    assert result.requests == 2
    assert not wait_until_drained(lambda: look_while_told(r1=2, r2=1), 0.3), "it is busy"
    tell(r2=1)
    assert not wait_until_drained(look, 0.3), "what was said before it left says nothing of what came then; this gateway is gone"
    started = time.monotonic()
    assert wait_until_drained(lambda: look_while_told(r2=1), 60)
    assert time.monotonic() - started >= 0.1, "routes take a moment"


def test_an_engine_that_is_gone_has_nothing_under_way(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Silent) as server:
        gone = f"http://127.0.0.1:{server.server_port}"
    result = count_running(gone, None, tmp_path / "load.json", "r1")
    assert result is not None
    assert result.requests == 0


def test_an_engine_gets_the_gpus_of_its_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows a replica that reserves one of eight GPUs no other; an engine that looked for eight failed."""
    monkeypatch.setenv("ROPEWALK_NODE_GPUS", "8")
    replica = Replica.__new__(Replica)  # without Ray Serve, which only tells it its name
    replica.id = "r1"
    places = dict.fromkeys(("model", "folder", "load", "logs"), str(tmp_path))
    command = ("sh", "-c", "echo share=$ROPEWALK_NODE_GPUS; exit 3")
    options, seconds = EngineOptions(slots=1, gpus=1), {"start_seconds": 60.0, "drain_seconds": 1.0}
    replica.spec = ReplicaSpec(
        app="a", version="v", engine="auto", engine_command=command, own_address=False, options=options, **places, **seconds
    )
    with pytest.raises(EngineError, match="share=1"):
        replica._start()


def test_a_program_of_the_users_gets_the_token_and_others_do_not(tmp_path: Path) -> None:
    options, folder = EngineOptions(token="a-secret", slots=2), fake_model(tmp_path / "model")
    with EngineProcess.start(CommandEngine(ENGINE), folder, options, tmp_path / "log") as engine:
        engine.await_ready(HANG_SECONDS)
        assert engine.ask("/v1/completions", {"prompt": "a"})["choices"]
        engine.headers = {}
        with pytest.raises(EngineError, match="the token is missing or wrong"):
            engine.ask("/v1/completions", {"prompt": "a"})
        family = [psutil.Process(engine.process.pid), *psutil.Process(engine.process.pid).children(recursive=True)]
        assert not any("a-secret" in part for each in family for part in each.cmdline())
    shown = ["sh", "-c", f"echo ${TOKEN_VARIABLE}; exit 3"]
    engine = EngineProcess.start(CommandEngine(shown), folder, options, tmp_path / "shown")
    with engine, pytest.raises(EngineError, match="a-secret"):
        engine.await_ready(HANG_SECONDS)


def test_a_program_that_names_no_token_is_refused_on_several_nodes() -> None:
    keys = {"model": "m", "resources": {"nodes": 2}}
    with pytest.raises(ConfigError, match=r"resources.nodes=2 other machines reach the engine's port; have it require the token"):
        load_config(ServeConfig, {**keys, "engine_command": ["program", "{port}"]})
    for part in ("{token_file}", f"exec program --key=${TOKEN_VARIABLE}"):
        load_config(ServeConfig, {**keys, "engine_command": ["sh", "-c", part]})
    load_config(ServeConfig, {"model": "m", "engine_command": ["program"]})


def test_gpus_that_no_replica_would_use_are_refused(tmp_path: Path) -> None:
    keys = {"model": str(tmp_path), "resources": {"nodes": 1, "gpus": 8}}
    with pytest.raises(ConfigError, match=r"gpus=0, but a node has resources.gpus=8: .* CPU; set gpus=1"):
        ServeConfig.model_validate(keys).preflight()

"""Start and end of an engine's process, and the error if it does not start."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from gguf import GGUFReader
from starlette.testclient import TestClient

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.engines.api.app import Api
from ropewalk.jobs.inference.engines.api.serve import configure_logging
from ropewalk.jobs.inference.engines.engine import Engine, EngineError, EngineOptions
from ropewalk.jobs.inference.engines.find import default_engine, find_engine
from ropewalk.jobs.inference.engines.llamacpp import convert
from ropewalk.jobs.inference.engines.llamacpp.gguf_facts import read_facts, read_fields
from ropewalk.jobs.inference.engines.process import EngineProcess
from ropewalk.jobs.inference.engines.transformers.__main__ import load
from ropewalk.jobs.serving.serve.engine_command import CommandEngine
from tests.jobs.inference.engines.conftest import TOKEN
from tests.jobs.inference.engines.streams import CHAT
from tests.patience import HANG_SECONDS, Patience, ended, until

# a process that starts an engine, says which, and waits
OWNER = """
import sys, time
from pathlib import Path
from ropewalk.jobs.inference.engines.engine import EngineOptions
from ropewalk.jobs.inference.engines.find import find_engine
from ropewalk.jobs.inference.engines.process import EngineProcess
engine = EngineProcess.start(find_engine("transformers"), Path(sys.argv[1]), EngineOptions(), Path(sys.argv[2]))
print(engine.process.pid, flush=True)
time.sleep(600)
"""


def test_the_token_is_nowhere_to_be_seen(engines: dict[str, EngineProcess]) -> None:
    for engine in engines.values():
        command = psutil.Process(engine.process.pid).cmdline()
        assert not any(TOKEN in word for word in command)
        assert TOKEN not in engine.log.read_text()
    assert TOKEN not in repr(EngineOptions(token=TOKEN))


def test_an_engine_dies_with_whoever_started_it(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(model), str(tmp_path / "log")]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    engine = psutil.Process(int(owner.stdout.readline()))
    owner.send_signal(signal.SIGKILL)
    ended(owner)
    owner.stdout.close()
    until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, Patience.START)


def test_the_cause_is_told_where_the_model_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 99)
    engine = EngineProcess.start(find_engine("llamacpp"), tmp_path / "cut.gguf", EngineOptions(), tmp_path / "log")
    with engine, pytest.raises(EngineError, match=r"cut\.gguf is not a GGUF file of a language model: it is cut short"):
        engine.await_ready(HANG_SECONDS)
    assert not psutil.pid_exists(engine.process.pid)
    with pytest.raises(ConfigError, match="neither a Hugging Face directory"):
        load(str(tmp_path / "nowhere"), EngineOptions())


def test_a_model_is_converted_beside_itself_and_its_file_says_what_it_is(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", str(model), "F32"])
    convert.main()
    gguf = Path(capsys.readouterr().out.strip())
    assert gguf.parent.parent == model
    report = {name: field for name, field in GGUFReader(gguf).fields.items() if not name.startswith("GGUF.")}
    expected = {name: len(item.data) if len(item.types) > 1 else item.contents() for name, item in report.items()}
    assert read_fields(gguf) == expected
    assert read_facts(gguf) == (256, 257, model)


def test_a_port_that_is_taken_and_an_engine_that_is_none(engines: dict[str, EngineProcess], model: Path, tmp_path: Path) -> None:
    port = int(engines["transformers"].url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        EngineProcess.start(find_engine("transformers"), model, EngineOptions(port=port), tmp_path / "log")
    with pytest.raises(ConfigError, match="did you mean 'llamacpp'"):
        find_engine("llamacp")


@pytest.mark.parametrize("engine", [CommandEngine(["true"]), find_engine("transformers")], ids=lambda engine: engine.name)
def test_an_engine_that_takes_no_draft_refuses_one(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"engine {engine.name} takes no draft"):
        EngineProcess.start(engine, tmp_path, EngineOptions(draft=tmp_path), tmp_path / "log")
    with pytest.raises(ConfigError, match="engine transformers takes no draft"):
        load(str(tmp_path), EngineOptions(draft=tmp_path))


def test_vllm_is_a_program_of_another_environment(tmp_path: Path) -> None:
    vllm = find_engine("vllm")
    options = EngineOptions(port=8001, slots=8, context=2048, name="m", token=TOKEN, extra={"executable": str(tmp_path / "vllm")})
    assert "is not a program here" in (vllm.unavailable(options) or "")
    (tmp_path / "vllm").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "vllm").chmod(0o755)
    assert vllm.unavailable(options) is None
    guessing = vllm.command(tmp_path / "model", replace(options, draft=tmp_path / "draft", draft_tokens=2))
    assert json.loads(guessing[guessing.index("--speculative-config") + 1]) == {
        "method": "draft_model",
        "model": str(tmp_path / "draft"),
        "num_speculative_tokens": 2,
    }
    command = vllm.command(tmp_path / "model", options)
    ours = command[command.index("--") + 1 :]
    assert ours[:3] == [str(tmp_path / "vllm"), "serve", str(tmp_path / "model")]
    assert ours[3:] == [
        "--host",
        "127.0.0.1",
        "--port",
        "8001",
        "--served-model-name",
        "m",
        "--max-num-seqs",
        "8",
        "--max-model-len",
        "2048",
    ]
    assert not any(TOKEN in word for word in command)
    assert vllm.environment(options) == {"VLLM_API_KEY": TOKEN}
    with EngineProcess.start(vllm, tmp_path, options, tmp_path / "log") as engine:
        sleeper = until(
            lambda: [child for child in psutil.Process(engine.process.pid).children() if child.name() == "sleep"], Patience.START
        )[0]
    assert not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE


def test_vllm_divides_a_model_among_its_gpus(tmp_path: Path) -> None:
    command = find_engine("vllm").command(tmp_path, EngineOptions(gpus=4))
    assert command[command.index("--tensor-parallel-size") + 1] == "4"
    assert "--tensor-parallel-size" not in find_engine("vllm").command(tmp_path, EngineOptions(gpus=1))


@pytest.mark.parametrize(("gpus", "visible"), [(2, "2|5,3"), (0, "0|"), (None, "8|5,3")])
def test_an_engine_is_told_its_share_of_the_nodes_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int | None, visible: str
) -> None:
    """The node has eight; Ray shows a replica its own, or all if it reserves none."""
    monkeypatch.setenv("ROPEWALK_NODE_GPUS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    (tmp_path / "vllm").write_text('#!/bin/sh\necho "$ROPEWALK_NODE_GPUS|$CUDA_VISIBLE_DEVICES"\n')
    (tmp_path / "vllm").chmod(0o755)
    options = EngineOptions(gpus=gpus, extra={"executable": str(tmp_path / "vllm")})
    with EngineProcess.start(find_engine("vllm"), tmp_path, options, tmp_path / "log") as engine:
        engine.process.wait()
    assert (tmp_path / "log").read_text().splitlines()[0] == visible


def test_an_engine_of_the_cpu_is_not_chosen_where_there_are_gpus(model: Path) -> None:
    assert default_engine(model, gpus=0).name == "llamacpp"
    assert default_engine(model, gpus=1).name == "transformers"
    assert find_engine("auto", model, gpus=1).name == "transformers"


def test_a_model_that_gguf_does_not_know_is_served_by_transformers(model: Path, tmp_path: Path) -> None:
    assert default_engine(model).name == "llamacpp"
    (tmp_path / "config.json").write_text('{"model_type": "rwkv"}')
    assert default_engine(tmp_path).name == "transformers"
    assert os.environ.get("ROPEWALK_ENGINE_TOKEN") is None


def test_the_cause_is_told_without_what_is_no_cause(tmp_path: Path) -> None:
    lines = [
        "Loading weights:  50%|#####     | 10/20 [00:00<00:00, 705.79it/s]",
        "2026-11-27 14:28:01,990 INFO ropewalk.jobs.inference.engines.api.serve: model is served",
        "Traceback (most recent call last):",
        '  File "x.py", line 1, in main',
        "    fail()",
        "error: the model is too large",
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    engine = EngineProcess(subprocess.Popen(["true"]), "http://127.0.0.1:1", tmp_path / "log", None)
    engine.process.wait()
    assert engine.cause() == f"error: the model is too large ({tmp_path / 'log'})"


def test_what_a_request_says_is_not_logged(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs are kept without masking and retention."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure_logging()
    api = Api("tiny")
    secret = "my secret"
    monkeypatch.setattr(api, "_ready", lambda: int(secret))
    client = TestClient(api.app)
    body = {"model": "tiny", "messages": [{"role": "user", "content": secret}]}
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 500
    assert "see its log" in answer.text
    log = capfd.readouterr().err
    assert "a request failed" in log
    assert "builtins.ValueError" in log
    assert "in _answer" in log
    assert "my secret" not in log

"""Conformance to OpenAI's API by others' tools: schemathesis and llm-comply."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from ropewalk.jobs.inference.engines.engine import EngineOptions
from ropewalk.jobs.inference.engines.find import find_engine
from ropewalk.jobs.inference.engines.process import EngineProcess
from tests.jobs.inference.engines.conftest import ENGINES, TOKEN
from tests.patience import HANG_SECONDS
from tests.real_data import smollm2
from tests.testers import conformance_tools

pytestmark = [pytest.mark.timeout(7200)]

CASES = 5000
OPERATIONS = 8
CONTEXT = 96  # tokens: a case is answered in no time
ANSWER_SECONDS = 300  # a case may ask for 128 answers, which are drawn eight at a time
# A request may be of the schema and still not fit into the context, or name a token that the model does not know.
LEFT_OUT = ("positive_data_acceptance",)
# a model of text reads no pictures, and says so: 400
NOT_OF_TEXT_MODELS = {"chat-image-input"}
# an answer is drawn without a seed, and one in some hundreds of a small model goes on to the end of the context: rightly told
RAMBLED = ["finish_reason: expected 'stop', got 'length'"]


@pytest.mark.soak("5,000 cases an engine; make test runs test_what_is_wrong_is_said")
@pytest.mark.parametrize("name", ENGINES)
def test_no_case_of_schemathesis_fails(name: str, model: Path, tmp_path: Path) -> None:
    options = EngineOptions(threads=1, slots=8, context=CONTEXT, name="tiny", token=TOKEN, extra={"type": "F32"})
    with EngineProcess.start(find_engine(name), model, options, tmp_path / "log") as engine:
        engine.await_ready(HANG_SECONDS)
        arguments = [
            str(conformance_tools() / "schemathesis"),
            "run",
            f"{engine.url}/openapi.json",
            "--header",
            f"Authorization: Bearer {TOKEN}",
        ]
        arguments += [
            "--max-examples",
            str(CASES // OPERATIONS),
            "--request-timeout",
            str(ANSWER_SECONDS),
            "--phases",
            "coverage,fuzzing",
            "--exclude-checks",
            ",".join(LEFT_OUT),
        ]
        done = subprocess.run([*arguments, "--no-color"], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:]
        assert int(done.stdout.partition("Test cases:")[2].split()[0].replace(",", "")) >= CASES, done.stdout[-2000:]
        assert "Traceback" not in engine.log.read_text()


@pytest.mark.soak("a real model; make test runs test_models_completions_and_chats")
@pytest.mark.parametrize("name", ENGINES)
def test_llm_comply(name: str, tmp_path: Path) -> None:
    options = EngineOptions(slots=1, context=2048, name="smollm2", token=TOKEN)
    with EngineProcess.start(find_engine(name), smollm2(), options, tmp_path / "log") as engine:
        engine.await_ready(HANG_SECONDS)
        arguments = [
            "-u",
            f"{engine.url}/v1",
            "-k",
            TOKEN,
            "-m",
            "smollm2",
            "--format",
            "openai-chat",
            "--timeout",
            "600",
            "--json",
        ]
        done = subprocess.run(
            [str(conformance_tools() / "llm-comply"), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "NO_COLOR": "1"},
        )
        results = json.loads(done.stdout[done.stdout.index("{") :])["results"]
        right = {
            result["id"] for result in results if result["status"] in {"passed", "skipped"} or result.get("errors") == RAMBLED
        }
        failed = {result["id"]: result for result in results if result["id"] not in right}
        assert failed.keys() == NOT_OF_TEXT_MODELS, failed

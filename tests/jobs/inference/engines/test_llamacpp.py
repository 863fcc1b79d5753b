"""Start of llama.cpp's server; a draft changes no answer."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xllamacpp

from ropewalk.jobs.inference.engines.engine import EngineOptions
from ropewalk.jobs.inference.engines.find import find_engine
from ropewalk.jobs.inference.engines.llamacpp.sampler import _start_server
from ropewalk.jobs.inference.engines.process import EngineProcess
from tests.jobs.inference.engines.streams import COMPLETIONS, ask
from tests.jobs.tiny import tiny_model
from tests.patience import HANG_SECONDS


def started(monkeypatch: pytest.MonkeyPatch, threads: int | None, usable: int, cores: int) -> Any:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(xllamacpp, "Server", lambda wanted: wanted)
    return _start_server(Path("model.gguf"), slots=3, threads=threads, context=64, key="k", draft=None)


@pytest.mark.parametrize(
    ("threads", "usable", "cores", "computing"),
    [(None, 2, 64, 2), (4, 2, 64, 4), (None, 8, 8, None)],
    ids=["some of a node", "as told", "a machine of its own"],
)
def test_it_computes_on_the_cores_that_it_may_use(
    threads: int | None, usable: int, cores: int, computing: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, ours = started(monkeypatch, threads, usable, cores), xllamacpp.CommonParams()
    assert wanted.cpuparams.n_threads == (computing or ours.cpuparams.n_threads)
    assert wanted.cpuparams_batch.n_threads == (computing or ours.cpuparams_batch.n_threads)
    assert wanted.n_batch == 8 * (computing or usable) + 3, "a piece of a prompt, and a token of each slot"


@pytest.mark.soak("a GGUF of each model is written and loaded first; make test runs the refusals")
def test_a_draft_changes_no_answer(tmp_path: Path) -> None:
    model, draft = tiny_model(tmp_path / "model"), tiny_model(tmp_path / "draft", seed=1, num_hidden_layers=1)
    plain = EngineOptions(threads=1, slots=2, name="tiny", extra={"type": "F32"})
    prompts = [list(text.encode()) for text in ("a rope", "the strands", "in a long straight lane")]
    body = {"model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 12, "return_token_ids": True}
    body["logit_bias"] = {str(token): -100 for token in range(128, 256)}
    answers = []
    for options in (plain, replace(plain, draft=draft, draft_tokens=2)):
        with EngineProcess.start(find_engine("llamacpp"), model, options, tmp_path / "log") as engine:
            engine.await_ready(HANG_SECONDS)
            answers.append([choice["token_ids"] for choice in ask(engine, COMPLETIONS, body).json()["choices"]])
    assert answers[0] == answers[1]

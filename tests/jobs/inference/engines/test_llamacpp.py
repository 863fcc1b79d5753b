"""How llama.cpp's server is started."""

import os
from pathlib import Path
from typing import Any

import pytest
import xllamacpp

from ropewalk.jobs.inference.engines.llamacpp.sampler import _started


def started(monkeypatch: pytest.MonkeyPatch, threads: int | None, usable: int, cores: int) -> Any:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(xllamacpp, "Server", lambda wanted: wanted)
    return _started(Path("model.gguf"), slots=3, threads=threads, context=64, key="k", draft=None)


@pytest.mark.parametrize(
    ("threads", "usable", "cores", "computing"),
    [(None, 2, 64, 2), (4, 2, 64, 4), (None, 8, 8, None)],
    ids=["some of a node", "as told", "a machine of its own"],
)
def test_it_computes_on_the_cores_that_it_may_use(
    threads: int | None, usable: int, cores: int, computing: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, own = started(monkeypatch, threads, usable, cores), xllamacpp.CommonParams()
    assert wanted.cpuparams.n_threads == (computing or own.cpuparams.n_threads)
    assert wanted.cpuparams_batch.n_threads == (computing or own.cpuparams_batch.n_threads)
    assert wanted.n_batch == 8 * (computing or usable) + 3, "a piece of a prompt, and a token of each slot"

"""Imports and threads that a process must not have before others are forked from it."""

import logging
import multiprocessing.forkserver
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ropewalk.cluster.engines.local_ranks import start_forkserver
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.forking import fork_program, import_modules


@pytest.fixture
def cuda_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)


@pytest.mark.usefixtures("cuda_runs")
def test_nothing_is_forked_from_a_process_where_cuda_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"CUDA is initialized.*remove the module from the job's preload"):
        fork_program(module_command("ropewalk.cluster.engines.group_server"), {}, tmp_path / "log")
    assert not (tmp_path / "log").exists()
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", lambda: pytest.fail("the server was started"))
    with pytest.raises(ConfigError, match="CUDA is initialized"):
        start_forkserver([])


def test_a_module_that_starts_cuda_as_it_is_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "hasty.py").write_text("import torch\ntorch.cuda.is_initialized = lambda: True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "hasty", ModuleType("hasty"))  # so that it goes again with the test
    del sys.modules["hasty"]
    monkeypatch.setattr(torch.cuda, "is_initialized", torch.cuda.is_initialized)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "0")
    with caplog.at_level(logging.ERROR):
        import_modules(["ropewalk.cluster.engines.group_server", "hasty"])
    assert [record.getMessage().split()[:3] for record in caplog.records] == [["hasty", "initializes", "CUDA"]]

"""Functions and jobs from Python: `ropewalk.submit`, `ropewalk.map`, `ropewalk.run`, on the real local backend."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import ropewalk
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.kill import processes_of
from ropewalk.jobs.orchestration.function.futures import RunFailedError
from tests.fakes.programs import functions
from tests.patience import HANG_SECONDS, Patience, until

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    yield
    until(lambda: not processes_of(tmp_path), Patience.START)


def test_a_function_by_its_name() -> None:
    future = ropewalk.submit(functions.add, 2, kwargs={"b": 3})
    assert future.result(HANG_SECONDS) == {"sum": 5, "attempt": 1}
    assert (future.state, future.done()) == ("SUCCEEDED", True)
    assert future.run.read_metrics()[0]["sum"] == 5
    assert [run.id for run in ropewalk.runs()] == [future.id]


def test_an_exception_brings_its_traceback() -> None:
    future = ropewalk.submit(functions.fail, "too small", name="failing")
    error = future.exception(HANG_SECONDS)
    assert isinstance(error, RunFailedError)
    assert "ValueError: too small" in str(error)
    assert "in fail" in str(error), "the traceback of the far side"
    assert future.id.startswith("failing-")
    with pytest.raises(RunFailedError, match="too small"):
        future.result()


def test_a_closure_travels_by_value() -> None:
    base = {"x": complex(1, 2)}
    future = ropewalk.submit(lambda y: base["x"] + y, 1, by_value=True, name="closure")
    assert future.result(HANG_SECONDS) == complex(2, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_pickle_of_another_user_is_not_loaded() -> None:
    future = ropewalk.submit(lambda: complex(1, 2), by_value=True, name="closure")
    assert future.result(HANG_SECONDS) == complex(1, 2)
    (later,) = ropewalk.runs()
    assert later.result() == complex(1, 2)
    (pickled,) = future.directory.glob("attempts/*/result.pkl")
    os.chown(pickled, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to uid 12345, and unpickling runs code of that user"):
        later.result()


def test_many_calls_are_one_submission_in_order() -> None:
    futures = ropewalk.map(functions.add, [1, 2, 3], [10, 20, 30], at_once=2)
    assert [future.result(HANG_SECONDS)["sum"] for future in futures] == [11, 22, 33]


def test_every_rank_calls_it() -> None:
    assert ropewalk.submit(functions.rank, launch="ranks", ranks_per_node=2).result(HANG_SECONDS) == [0, 2]


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="by_value=True"):
        ropewalk.submit(lambda: 1)
    with pytest.raises(ConfigError, match="not JSON values"):
        ropewalk.submit(functions.add, object())
    with pytest.raises(ConfigError, match="kwargs: contains what looks like a secret"):
        ropewalk.submit(functions.add, 1, kwargs={"token": "the run would get ***"})
    with pytest.raises(ConfigError, match=r"unknown key 'resources\.gpu'"):
        ropewalk.submit(functions.add, 1, gpu=2)


def test_a_job_runs_to_its_end() -> None:
    result = ropewalk.run("command", {"command": ["true"], "launch": "once"})
    assert (result["state"], result["exit_code"]) == ("SUCCEEDED", 0)


def test_outside_a_run_it_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ropewalk.log({"train/loss": 1.5}, step=3)
    ropewalk.progress(3, 10)
    assert "step 3  train/loss 1.5" in capsys.readouterr().out
    assert not ropewalk.run
    assert (ropewalk.run.id, ropewalk.run.attempt, ropewalk.stop_requested()) == ("", 0, False)
    assert ropewalk.latest_checkpoint() is None
    for step in (1, 2, 3):
        (ropewalk.checkpoint_dir() / f"step-{step}").mkdir()
        (ropewalk.checkpoint_dir() / f"step-{step}/weights").write_bytes(bytes([step]) * 100)
        ropewalk.commit_checkpoint(ropewalk.checkpoint_dir() / f"step-{step}", keep=2)
    (ropewalk.checkpoint_dir() / "step-4").mkdir()
    assert ropewalk.latest_checkpoint() == Path("checkpoints/step-3"), "one without a manifest is never the latest"
    (ropewalk.checkpoint_dir() / "step-3/weights").write_bytes(b"damaged")
    assert ropewalk.latest_checkpoint() == Path("checkpoints/step-2")
    assert "skipping checkpoint step-3: weights does not match its checksum" in capsys.readouterr().err
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["latest.json", "step-2", "step-3", "step-4"]


def test_the_current_run_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROPEWALK_RUN", raising=False)
    assert repr(ropewalk.run) == "<no run>"
    for name, value in (("ROPEWALK_RUN", "/runs/train-1"), ("ROPEWALK_ATTEMPT", "2"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    assert repr(ropewalk.run) == "<run train-1, attempt 2, rank 3>"

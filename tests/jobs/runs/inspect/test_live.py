"""Ranks of a live run are looked into, and one of them is killed meanwhile: the run goes on, and loses no step."""

from pathlib import Path

import pytest

from tests.benchmarks.bench_inspect import measure_ranks


@pytest.mark.soak("minutes, four ranks; make test profiles two ranks in test_ranks_are_profiled_at_the_same_steps_and_lose_none")
@pytest.mark.timeout(1200)
def test_a_rank_is_killed_inside_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROPEWALK_RUNS", "PYTHONPATH", "WANDB_MODE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
    row = measure_ranks(4, tmp_path)
    assert (row["same_steps"], row["traces"], row["killed"] > 0) == (True, 4, True)
    assert (row["state"], row["steps_missing"]) == ("SUCCEEDED", 0)
    assert row["stacks"] >= 4

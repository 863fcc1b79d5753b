"""Confirmation of a sweep's best: the arithmetic, runs of new seeds (once each), and the report."""

import json
import math
import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, read_json
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs import registry as catalog
from ropewalk.jobs.orchestration.sweep.report import confirm
from ropewalk.jobs.orchestration.sweep.report.confirm_report import compare, confirmation, is_real, mean_of, rounding_unit
from ropewalk.jobs.orchestration.sweep.report.results import read_sweep
from ropewalk.jobs.results.statistics import t_quantile
from ropewalk.jobs.runs.show.status import all_runs
from tests.fakes import toss
from tests.fakes.sweep import METRIC, START, make_sweep, make_trial_run, write_record
from tests.jobs.shell import Shell

ROOT = Path(__file__).resolve().parents[4]


def test_the_difference_is_paired_by_seed() -> None:
    # noise of the seeds, which both share, is fifty times the difference
    best, other = {1: 3.0, 2: 3.5, 3: 2.5, 4: 9.0}, {1: 3.011, 2: 3.509, 3: 2.51, 5: 0.0}
    result = compare(best, other, "min")
    gains = [0.011, 0.009, 0.01]
    assert result.n == 3
    assert result.difference == pytest.approx(0.01)
    assert result.standard_error == pytest.approx(statistics.stdev(gains) / math.sqrt(3))
    error = result.standard_error
    assert result.interval == pytest.approx((0.01 - 4.303 * error, 0.01 + 4.303 * error), rel=1e-4)
    assert is_real(result) is True
    assert is_real(compare(best, other, "max")) is False


def test_with_one_seed_nothing_is_said() -> None:
    result = compare({1: 3.0}, {1: 9.0}, "min")
    assert (result.n, is_real(result), result.interval) == (1, None, None)
    assert mean_of([3.0])["standard_error"] is None
    assert mean_of([])["mean"] is None


def test_two_seeds_are_too_few_for_a_verdict() -> None:
    result = compare({1: 3.0, 2: 3.1}, {1: 3.5, 2: 3.6}, "min")
    assert (result.n, is_real(result)) == (2, None)


def test_differences_that_are_equal_by_rounding_are_no_evidence() -> None:
    best, other = {1: 0.51, 2: 0.52, 3: 0.53}, {1: 0.5, 2: 0.51, 3: 0.52}
    rounded = compare(best, other, "max")
    assert rounded.standard_error == pytest.approx(0.01 / math.sqrt(6 * 3))
    assert is_real(rounded) is False
    exact = compare({seed: value + 1e-12 for seed, value in best.items()}, other, "max")
    assert is_real(exact) is True
    assert rounding_unit([250.0, 1.25]) == pytest.approx(0.01)


def test_more_seeds_are_asked_for_as_many_as_would_do() -> None:
    result = compare({1: 1.0, 2: 2.0, 3: 3.0}, {1: 1.3, 2: 1.9, 3: 3.4}, "min")
    assert is_real(result) is False
    needed = result.pairs_needed
    assert needed is not None
    deviation = statistics.stdev([0.3, -0.1, 0.4])
    reach, before = (t_quantile(0.975, n) * deviation / math.sqrt(n) for n in (needed, needed - 1))
    assert reach < 0.2 <= before
    assert compare({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}, "min").pairs_needed is None


def finish(runs: Mapping[int, RunDir], values: Mapping[int, float]) -> None:
    for seed, run in runs.items():
        append_line(run.metrics, {"step": 270, "attempt": 1, "time": START, METRIC: values[seed]})
        run.write_outcome(1, Outcome(state=RunState.SUCCEEDED, exit_code=0, cause="done"))


def test_what_an_earlier_call_began_is_taken_up(shell: Shell) -> None:
    results = read_sweep(make_sweep(shell.home / "runs", 6, stops=False))
    result = confirm.candidates(results, "runner-up")
    assert [c.trial for c in result] == [t.trial for t in results.eligible[:2]]
    seeds = confirm.seeds_of(results, 3)
    assert seeds == [1, 2, 3]  # the sweep's own is 0
    confirm.ensure_runs(results, result, seeds, "slow", ["ropewalk"])
    (request,) = shell.asked("submit_many")
    assert sorted(request["runs"]) == sorted(run.id for item in result for run in item.runs.values())
    for outcome in result:
        for seed, run in outcome.runs.items():
            config = run.record["config"]
            assert config["seed"] == seed
            assert config["optim"]["lr"] == pytest.approx(outcome.parameters["optim.lr"])
            assert config["wandb"]["group"] == results.run.id
            assert "parent" not in run.record  # it lives on though the sweep is over
    finish(result[0].runs, {1: 3.1, 2: 3.2, 3: 3.15})
    finish(result[1].runs, {1: 3.31, 2: 3.39, 3: 3.35})
    output = json.loads(shell("confirm", results.run.id, "--seeds", "3", "--json"))
    assert len(shell.asked("submit_many")) == 1
    assert shell.asked("submit") == []
    assert output["difference"] == pytest.approx(0.2)
    assert (output["n"], output["real"]) == (3, True)
    assert output["words"].startswith(
        f"The win is real: trial {result[0].trial} is better than trial {result[1].trial} by 0.2 ± "
    )
    assert [c["mean"] for c in output["candidates"]] == pytest.approx([3.15, 3.35])
    assert [c["n"] for c in output["candidates"]] == [3, 3]
    expected = json.loads(shell("best", results.run.id, "--json"))
    assert expected["expected"] == pytest.approx(3.15), "without the sweep's own seed, which was chosen for its luck"
    assert (expected["expected_error"], expected["expected_seeds"]) == (pytest.approx(0.05 / math.sqrt(3)), 3)
    assert "# With new seeds expect 3.15 ± 0.028868, the mean of 3 new seeds." in shell("best", results.run.id)


def test_more_seeds_and_another_opponent_add_what_is_missing(shell: Shell) -> None:
    results = read_sweep(make_sweep(shell.home / "runs", 6, stops=False))
    first = confirm.candidates(results, "runner-up")
    confirm.ensure_runs(results, first, [1, 2], "slow", [])
    second = confirm.candidates(results, "base")
    confirm.ensure_runs(results, second, [1, 2, 3], "slow", [])
    assert second[0].runs[1].id == first[0].runs[1].id
    assert [len(item["runs"]) for item in shell.asked("submit_many")] == [4, 4]  # seed 3 of the best, 1 to 3 of the base
    assert second[1].runs[3].record["config"]["optim"]["schedule"] == "cosine"


def test_a_run_that_was_written_down_and_never_submitted_is_submitted(shell: Shell) -> None:
    results = read_sweep(make_sweep(shell.home / "runs", 6, stops=False))
    result = confirm.candidates(results, "runner-up")
    with pytest.raises(Exception, match="closed until Monday"):
        confirm.ensure_runs(results, result, [1], "closed", [])
    record = read_json(results.run.path / confirm.RECORD) or {}
    assert len(record["runs"]) == 2
    closed, well = (shell.home / "clusters.yaml").read_text(), (shell.home / "clusters.yaml")
    well.write_text(closed.replace("refuse:", "was:"))
    confirm.ensure_runs(results, result, [1], "closed", [])
    assert sorted(shell.asked("submit_many")[0]["runs"]) == sorted(line["run"] for line in record["runs"])


def test_two_at_the_same_moment_run_nothing_twice(shell: Shell) -> None:
    sweep = make_sweep(shell.home / "runs", 6, stops=False)

    def call(_: int) -> list[str]:
        results = read_sweep(sweep)
        result = confirm.candidates(results, "runner-up")
        confirm.ensure_runs(results, result, [1, 2], "slow", [])
        return sorted(run.id for candidate in result for run in candidate.runs.values())

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(call, range(2))
    assert first == second
    assert len({*first}) == 4


def test_what_cannot_be_confirmed_is_told(shell: Shell) -> None:
    root = shell.home / "runs"
    going = make_sweep(root, 4, name="going")
    (going.attempt_dir(1) / "outcome.json").unlink()
    assert "has not ended" in shell.mistake("confirm", going.id)
    single = make_sweep(root, 1, name="single")
    assert "no runner-up; use --against base" in shell.mistake("confirm", single.id)
    bare = make_sweep(root, 4, name="bare", base={"data": "data", "seq_len": 16})
    assert "steps: required" in shell.mistake("confirm", bare.id, "--against", "base")


@pytest.fixture
def tossed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A sweep over a toy job; what runs again runs on the local backend."""
    monkeypatch.setitem(catalog.JOBS, "toss", toss.SPEC)
    monkeypatch.chdir(ROOT)  # where runs can import the toy from
    monkeypatch.setenv("WANDB_MODE", "disabled")
    space, base = {"height": {"uniform": [0.0, 2.0]}}, {"steps": 3, "noise": 0.01}
    root = tmp_path / "runs"
    sweep = make_sweep(root, 1, name="tosses", job="toss", base=base, space=space, metric="toss/height")
    sweep.path.joinpath("run.yaml").write_text(
        sweep.path.joinpath("run.yaml").read_text().replace("cluster: good", "cluster: local")
    )
    for number, height in enumerate((0.5, 1.0)):
        run = make_trial_run(root, f"toss-{number}", {**base, "height": height}, {}, state=RunState.SUCCEEDED)
        append_line(run.metrics, {"step": 3, "attempt": 1, "time": START, "toss/height": height})
        write_record(sweep, number, {"height": height}, [run.id], "SUCCEEDED")
    return sweep


@pytest.mark.soak("six runs; make test confirms by a backend that is made up")
def test_runs_of_the_real_backend_say_that_the_win_is_real(shell: Shell, tossed: RunDir) -> None:
    page = shell("confirm", tossed.id, "--seeds", "3")
    assert "The win is real: trial 0 is better than trial 1 by 0.4" in page  # and a seed's luck
    assert "6 of 6 runs have ended" in shell.err
    before = [run.id for run in all_runs()]
    assert "The win is real" in shell("confirm", tossed.id, "--seeds", "3")
    assert [run.id for run in all_runs()] == before  # nothing was run twice


def test_no_spread_and_no_difference_are_told_as_such(shell: Shell) -> None:
    results = read_sweep(make_sweep(shell.home / "runs", 6, stops=False))
    result = confirm.candidates(results, "runner-up")
    confirm.ensure_runs(results, result, [1, 2, 3], "slow", [])
    finish(result[0].runs, {1: 3.0, 2: 3.1, 3: 3.2})
    finish(result[1].runs, {1: 3.5 + 1e-12, 2: 3.6 + 1e-12, 3: 3.7 + 1e-12})
    assert "The win is real, and independent of the seed" in confirmation(results, result)["words"]
    finish(result[1].runs, {1: 3.0, 2: 3.1, 3: 3.2})
    assert "The win is not significant" in confirmation(results, result)["words"]
    finish(result[1].runs, {1: 2.0, 2: 2.11, 3: 2.2})
    assert "The win is not reproduced" in confirmation(results, result)["words"]
    (result[1].runs[2].attempt_dir(1) / "outcome.json").unlink()
    report = confirmation(results, result)
    assert (report["real"], report["n"]) == (None, 2)
    assert "No verdict: only two seeds have values of both" in report["words"]

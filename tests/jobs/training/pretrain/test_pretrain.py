"""Training as a whole: the elastic law, resuming, stopping, finishing."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.results.readable import read_table
from ropewalk.jobs.runs.show.events import format_event
from ropewalk.jobs.runs.show.stragglers import stragglers
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.sharding.checkpoints.layout import is_pinned, steps_in
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, events, launch, log_of, losses, make_run, pretrain_config, start, weights
from tests.patience import HANG_SECONDS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Eight steps on two ranks, with checkpoints of steps 3, 6 and 8; tests that change it take a copy."""
    run = make_run(tmp_path_factory.mktemp("runs"), pretrain_config(data))
    launch(run, 2)
    return run


def copy_of(run: RunDir, root: Path) -> RunDir:
    return RunDir(shutil.copytree(run.path, root / run.id))


def seen(run: RunDir) -> list[int]:
    """Every sample whose update is part of the final model, in the order of attempts and steps."""
    resumed = {event["attempt"]: event["step"] for event in events(run, "resumed")}
    samples: list[int] = []
    for attempt in run.attempts():
        first, last = resumed.get(attempt, 0), resumed.get(attempt + 1, 10**9)
        for path in sorted(run.path.glob(f"seen-{attempt}-*.jsonl")):
            samples += [sample for line in path.read_text().splitlines()[: last - first] for sample in json.loads(line)]
    return samples


def leave_at_next_step(run: RunDir, ranks: int, step: int, **env: str) -> None:
    """Run until `step` is logged, ask to stop, and see it stop."""
    group = start(run, ranks, **env)
    group.until(lambda: step in losses(run))
    (run.path / "stop-here").touch()
    assert group.wait() == [85] * ranks, log_of(run)
    (run.path / "stop-here").unlink()


def test_loss_does_not_depend_on_the_world_size(data: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    runs = {ranks: make_run(tmp_path, pretrain_config(data)) for ranks in (1, 3)}
    results = {ranks: launch(run, ranks) for ranks, run in runs.items()} | {2: undisturbed.results()}
    runs[2] = undisturbed
    for ranks in (2, 3):
        assert losses(runs[ranks]) == pytest.approx(losses(runs[1]), rel=1e-6)
        assert results[ranks]["validation/loss"] == pytest.approx(results[1]["validation/loss"], rel=1e-6)
    assert results[1]["step"] == 8
    assert results[1]["tokens"] == 8 * 8 * 32
    assert (runs[1].checkpoints / results[1]["checkpoint"] / "manifest.json").is_file()


@pytest.mark.parametrize(
    "dropout", [pytest.param(0.0, marks=pytest.mark.soak("make test runs it with dropout, which needs more state")), 0.1]
)
def test_stopped_and_resumed_is_bit_identical(data: Path, tmp_path: Path, dropout: float) -> None:
    model = {"config": {**TINY, "attention_dropout": dropout}}
    whole, parted = (make_run(tmp_path, pretrain_config(data, steps=16, model=model)) for _ in range(2))
    launch(whole, 2)
    leave_at_next_step(parted, 2, 4)
    assert events(parted, "stopped")[0]["step"] < 16
    launch(parted, 2)
    assert events(parted, "resumed")[0]["step"] == events(parted, "stopped")[0]["step"]
    assert losses(whole) == losses(parted)
    assert equal(weights(whole), weights(parted))


def test_resume_2_1_3_ranks_sees_every_sample_once(data: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    elastic = make_run(tmp_path, pretrain_config(data))
    for ranks in (2, 1):
        (elastic.path / "stop-here").touch()  # from the first step boundary on
        assert start(elastic, ranks, TEST_HOOK="record_samples").wait() == [85] * ranks, log_of(elastic)
    (elastic.path / "stop-here").unlink()
    launch(elastic, 3, TEST_HOOK="record_samples")
    assert [(event["world_size"], event["step"]) for event in events(elastic, "resumed")] == [(1, 1), (3, 2)]
    assert sorted(seen(elastic)) == list(range(8 * 8))
    assert losses(elastic) == pytest.approx(losses(undisturbed), rel=1e-6)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("stall_in_step", marks=pytest.mark.soak("another moment; make test kills during a save")),
        "stall_in_save",
    ],
)
def test_killed_and_resumed_is_bit_identical(data: Path, undisturbed: RunDir, tmp_path: Path, moment: str) -> None:
    killed = make_run(tmp_path, pretrain_config(data))
    group = start(killed, 2, TEST_HOOK=moment)
    # the checkpoint of step 3 is written beside the steps that follow it
    group.until(lambda: (killed.path / "stalled").exists() and bool(events(killed, "checkpoint")))
    group.kill()
    launch(killed, 2)
    assert [event["step"] for event in events(killed, "resumed")] == [3]
    assert equal(weights(undisturbed), weights(killed))
    folder = killed.checkpoints / "step-00000006"
    assert not list(folder.glob("0001-*"))  # what the killed attempt left half-written is gone


def test_a_finished_run_returns_its_results_again(undisturbed: RunDir, tmp_path: Path) -> None:
    run = copy_of(undisturbed, tmp_path)
    assert launch(run, 1) == undisturbed.results()
    assert len(losses(run)) == 8
    assert len(events(run, "first_step")) == 1


def test_validation_and_early_stop(data: Path, tmp_path: Path) -> None:
    validation = {"every_steps": 1, "max_sequences": 4, "patience": 2}
    diverging = {"lr": 1.0, "warmup_steps": 0, "grad_clip": 0}
    config = pretrain_config(data, steps=50, optim=diverging, validation=validation, anomaly={"spike_factor": None})
    run = make_run(tmp_path, config)
    results = launch(run, 1)
    scored = [line["validation/loss"] for line in run.read_metrics() if "validation/loss" in line]
    stop = events(run, "early_stop")[0]
    assert results["step"] == stop["step"] < 50
    assert stop["best"] == min(scored)
    assert all(loss > stop["best"] for loss in scored[stop["step"] - 2 : stop["step"]])
    assert launch(run, 1) == results


def test_metrics_name_what_the_contract_names(undisturbed: RunDir) -> None:
    lines = [line for line in undisturbed.read_metrics() if "train/loss" in line]
    assert [line["train/position"] for line in lines] == list(range(8, 72, 8))
    wanted = {"step", "attempt", "time", "train/loss", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second"}
    assert wanted <= lines[0].keys()
    assert json.loads(undisturbed.progress.read_text())["done"] == 8


def test_mixture_of_data_sets(data: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", seed=1)
    mixture = [{"path": str(data), "weight": 3}, {"path": str(other)}]
    assert launch(make_run(tmp_path, pretrain_config(data, steps=2) | {"data": mixture}), 1)["step"] == 2


def test_tokenizers_that_differ_are_refused(data: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", vocabulary=263)
    run = make_run(tmp_path, pretrain_config(data) | {"data": [{"path": str(data)}, {"path": str(other)}]})
    assert start(run, 1).wait() == [42]
    assert "preprocess them with one tokenizer" in log_of(run)


def test_missing_data_is_named_at_submission(tmp_path: Path) -> None:
    for path, arguments in [(tmp_path / "none", "does not exist"), (tmp_path, "is not complete")]:
        config = load_config(PretrainConfig, {"data": str(path), "steps": 1})
        with pytest.raises(ConfigError, match=arguments):
            config.preflight()


@pytest.mark.parametrize(
    "model",
    [{}, {"preset": "tiny", "path": "x"}, {"config": {"hidden_size": 8}}, {"preset": "huge"}, {"preset": "tiny", "step": 3}],
)
def test_a_model_is_one_thing(model: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="model"):
        load_config(PretrainConfig, {"data": "x", "steps": 1, "model": model})


@pytest.mark.soak("five interpreters; make test starts ranks by Ropewalk itself")
@pytest.mark.slow
def test_torchrun_starts_it_too(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, pretrain_config(data, steps=2))
    attempt = run.begin_attempt()
    arguments = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "ropewalk.cluster.engines.entry",
        str(run.path),
    ]
    root = Path(__file__).resolve().parents[4]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments, "--attempt", str(attempt)],
        cwd=root,
        env=env,
        capture_output=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert run.results()["step"] == 2


def initial(run: RunDir) -> dict[str, torch.Tensor]:
    """The weights that a run with the policy `rollback` saved before its first step."""
    return {name: tensor for name, tensor in weights(run, 0).items() if name.startswith("model.")}


def test_it_begins_with_the_weights_of_another_run_and_at_step_0(data: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    source = copy_of(undisturbed, tmp_path)
    for model, step in (({"run": source.id}, 8), ({"run": str(source.path), "step": 3}, 3)):
        config = pretrain_config(data, steps=2, model=model, anomaly={"policy": "rollback"})
        run = make_run(tmp_path, config | {"seed": 7})
        assert launch(run, 3)["step"] == 2
        saved = weights(source, step)
        assert equal(initial(run), {name: saved[name] for name in initial(run)})
        assert not any(tensor.any() for name, tensor in weights(run, 0).items() if name.startswith("optimizer."))
        assert [(event["run"], event["step"]) for event in events(run, "initialized_from")] == [(model["run"], step)]
        assert sorted(losses(run)) == [1, 2]
        assert not is_pinned(StoragePath(source.checkpoints), step), "its checkpoint is not read again"


@pytest.mark.soak(
    "four ranks; test_it_goes_on_from_another_runs_checkpoint_with_other_hyperparameters pins a checkpoint and resumes from"
    " its own"
)
def test_it_outlives_the_run_that_it_began_with(data: Path, tmp_path: Path) -> None:
    source = make_run(tmp_path, pretrain_config(data, steps=3))
    launch(source, 1)
    run = make_run(tmp_path, pretrain_config(data, steps=16, model={"run": source.id}, checkpoint={"every_steps": 1}))
    leave_at_next_step(run, 2, 4)
    assert is_pinned(StoragePath(source.checkpoints), 3)
    shutil.rmtree(source.path)
    assert launch(run, 1)["step"] == 16


def test_a_run_without_a_model_for_it_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path))
    waiting = make_run(tmp_path, pretrain_config(data))
    scored = make_run(tmp_path, {"model": waiting.id, "data": str(data)}, "evaluate")
    config = {"data": str(data), "steps": 1}
    for key in ("model", "start_from"):
        load_config(PretrainConfig, {**config, key: {"run": waiting.id}}).preflight()
        for word, arguments in (("nobody", "no run 'nobody'"), (scored.id, "is a evaluate run, which has no model")):
            with pytest.raises(ConfigError, match=arguments):
                load_config(PretrainConfig, {**config, key: {"run": word}}).preflight()
        with pytest.raises(ConfigError, match=rf"{key}.run: .* may mean another run later; use the full id: {waiting.id}"):
            load_config(PretrainConfig, {**config, key: {"run": waiting.id[:-1]}}).preflight()
    early = make_run(tmp_path, pretrain_config(data, model={"run": waiting.id}))
    assert start(early, 1).wait() == [42]
    assert f"model.run: {waiting.id} has no complete checkpoint yet" in log_of(early)
    launch(waiting, 1)
    other = make_dataset(tmp_path / "other", vocabulary=263)
    strange = make_run(tmp_path, pretrain_config(other, model={"run": waiting.id}))
    assert start(strange, 1).wait() == [42]
    assert "model.run" in log_of(strange)
    assert "preprocess the data with tokenizer.path=" in log_of(strange)


def test_it_goes_on_from_another_runs_checkpoint_with_other_hyperparameters(data: Path, tmp_path: Path) -> None:
    donor = make_run(tmp_path, pretrain_config(data, steps=9, checkpoint={"every_steps": 3, "keep": 1}))
    group = start(donor, 2, TEST_HOOK="pin_first_checkpoint")
    assert group.wait() == [0, 0], log_of(donor)
    assert steps_in(StoragePath(donor.checkpoints)) == [3, 9], "a pinned checkpoint is not pruned"
    changed = {"optim": {"lr": 1e-3, "warmup_steps": 2, "weight_decay": 0.0}, "start_from": {"run": donor.id, "step": 3}}
    taker = make_run(tmp_path, pretrain_config(data, steps=9) | changed)
    assert start(taker, 2, TEST_HOOK="resave").wait() == [85, 85], log_of(taker)
    assert equal(weights(taker, 3), weights(donor, 3)), "weights and Adam's moments are the donor's, bit by bit"
    assert [(e["run"], e["step"]) for e in events(taker, "started_from")] == [(donor.id, 3)]
    launch(taker, 1)
    assert [event["step"] for event in events(taker, "resumed")] == [3], "then it resumes from its own"
    assert min(losses(taker)) == 4
    assert losses(taker)[4] == pytest.approx(losses(donor)[4], rel=1e-6), "the same weights and the same next batch"
    assert losses(taker)[9] != losses(donor)[9]


def test_a_donor_that_is_not_there_or_of_another_model_is_named(data: Path, undisturbed: RunDir, tmp_path: Path) -> None:
    donor = copy_of(undisturbed, tmp_path)
    other = {"config": {**TINY, "hidden_size": 16}}
    for changes, arguments in (
        ({"start_from": {"run": "nobody"}}, "no run 'nobody'"),
        ({"start_from": {"run": donor.id, "step": 7}}, "no manifest.json"),
        ({"start_from": {"run": donor.id}, "model": other}, "hidden_size is 32 there and 16 here"),
    ):
        taker = make_run(tmp_path, pretrain_config(data, steps=4) | changes)
        assert start(taker, 1).wait() == [42]
        assert arguments in log_of(taker)


def test_a_slow_rank_is_named_by_event_metrics_table_and_show(data: Path, tmp_path: Path) -> None:
    keys = {"steps": 17, "checkpoint": {"every_steps": 100}, "validation": {"every_steps": 100, "max_sequences": 1}}
    run = make_run(tmp_path, pretrain_config(data, **keys))
    launch(run, 2, TEST_HOOK="slow_rank")
    (event,) = events(run, "straggler")
    assert (event["rank"], event["phase"], event["step"] <= 17) == (1, "forward_backward", True)
    assert event["host"] == socket.gethostname()
    assert event["share"] == pytest.approx(1.0)
    assert event["rate_without"] > 1
    assert [each["rank"] for each in stragglers(run)] == [1]
    assert "without it the run is" in str(format_event(event))
    newest = [line for line in run.read_metrics() if "ranks/slowest" in line][-1]
    assert (newest["ranks/slowest"], newest["ranks/slowest_share"]) == (1, pytest.approx(1.0))
    table = read_table(run.path / "tables/ranks.json")
    assert table is not None
    assert [row[0] for row in table.rows] == [0, 1]

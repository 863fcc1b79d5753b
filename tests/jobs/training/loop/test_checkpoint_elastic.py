"""The elastic law on whole runs, and checkpoints under bad weather: full disk, an orphan, a store that is away."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from ropewalk.cluster.errors import EXIT_LOST_PEER
from ropewalk.cluster.run.directory import RunDir
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, equal, events, launch, log_of, losses, make_run, pretrain_config, start, weights

if TYPE_CHECKING:
    from tests.conftest import S3Server


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


def stop_at_once(run: RunDir, ranks: int) -> int:
    """Ask a run to stop before it starts: it saves at its first step boundary. Returns the step."""
    (run.path / "stop-here").touch()
    assert start(run, ranks).wait() == [85] * ranks, log_of(run)
    (run.path / "stop-here").unlink()
    return int(events(run, "stopped")[-1]["step"])


def copy_of(run: RunDir, root: Path, name: str) -> RunDir:
    """Copy a run in its present state."""
    target = root / name
    target.mkdir()
    for path in run.path.rglob("*"):
        to = target / path.relative_to(run.path)
        if path.is_dir():
            to.mkdir(parents=True, exist_ok=True)
        else:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    return RunDir(target)


@pytest.mark.soak(
    "ten ranks; test_saved_at_4_ranks_and_2_by_2_loaded_at_1_2_3_and_4 has the weights,"
    " test_resume_2_1_3_ranks_sees_every_sample_once the losses"
)
@pytest.mark.parametrize("copies", [1, 2])
def test_saved_at_4_ranks_restored_at_1_2_and_3(data: Path, tmp_path: Path, copies: int) -> None:
    saved = make_run(tmp_path, pretrain_config(data, steps=4, parallel={"replicate": copies}))
    step = stop_at_once(saved, 4)
    before = weights(saved)
    continued = {ranks: copy_of(saved, tmp_path, f"at-{ranks}") for ranks in (1, 2, 3)}
    for ranks, run in continued.items():
        record = run.path / "run.yaml"
        record.write_text(record.read_text().replace(f"replicate: {copies}", "replicate: 1"))
        assert equal(weights(run, step), before)
        launch(run, ranks)
    reference = weights(continued[1])
    for ranks in (2, 3):
        assert losses(continued[ranks]) == pytest.approx(losses(continued[1]), rel=1e-6)
        after = weights(continued[ranks])
        assert all(torch.allclose(after[name], reference[name], rtol=1e-4, atol=1e-6) for name in reference)


def test_state_passes_unchanged_through_other_numbers_of_ranks_without_moments_of_what_is_not_trained(
    data: Path, tmp_path: Path
) -> None:
    saved = make_run(tmp_path, pretrain_config(data, steps=6, checkpoint={"every_steps": 1}))
    launch(saved, 2, TEST_HOOK="freeze")
    first, last = weights(saved, 4), weights(saved, 6)
    frozen = {name for name in first if "layers.0.self_attn" in name}
    assert len(frozen) == 4, "weights, and nothing of Adam's"
    assert all(torch.equal(first[name], last[name]) for name in frozen)
    trained = {name for name in first if name.startswith("model.")} - frozen
    assert not any(torch.equal(first[name], last[name]) for name in trained)
    adams = {f"optimizer.{name.removeprefix('model.')}.{key}" for name in trained for key in ("step", "exp_avg", "exp_avg_sq")}
    assert first.keys() == trained | frozen | adams
    for step in (5, 6):
        shutil.rmtree(saved.checkpoints / f"step-{step:08d}")
    run = copy_of(saved, tmp_path, "at-3")
    (run.path / "stop-here").touch()  # from the first step boundary on
    assert start(run, 3, TEST_HOOK="freeze_and_resave").wait() == [85] * 3, log_of(run)
    assert equal(weights(run, 4), first)
    assert json.loads((run.checkpoints / "step-00000004/manifest.json").read_text())["world_size"] == 3
    (run.path / "stop-here").unlink()
    launch(run, 1, TEST_HOOK="freeze")
    assert losses(run) == pytest.approx(losses(saved), rel=1e-6)


def test_the_update_waits_for_the_copy_of_the_state(data: Path, tmp_path: Path) -> None:
    config = pretrain_config(data, steps=5, checkpoint={"every_steps": 2})
    at_once, late = make_run(tmp_path, config), make_run(tmp_path, config)
    launch(at_once, 1)
    launch(late, 1, TEST_HOOK="copy_at_the_last_moment")
    for step in (2, 4, 5):
        assert equal(weights(at_once, step), weights(late, step))


def test_a_run_whose_checkpoints_are_all_damaged_begins_again(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, pretrain_config(data, steps=2, checkpoint={"every_steps": 1}))
    launch(run, 1)
    first = weights(run)
    for path in run.checkpoints.glob("*/*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-9] ^= 1  # the headers and their tables are intact
        path.write_bytes(content)
    assert launch(run, 1)["step"] == 2
    assert not events(run, "resumed")
    assert {event["step"] for event in events(run, "bad_checkpoint")} == {1, 2}
    assert equal(weights(run), first)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.soak("the other way round"))])
def test_a_tie_is_kept_and_its_change_is_refused(data: Path, tmp_path: Path, tied: bool) -> None:
    config = pretrain_config(data, steps=2, model={"config": {**TINY, "tie_word_embeddings": tied}})
    run = make_run(tmp_path, config)
    launch(run, 1)
    assert ("model.lm_head.weight" in weights(run)) is not tied
    other = pretrain_config(data, steps=4, model={"config": {**TINY, "tie_word_embeddings": not tied}})
    changed = make_run(tmp_path, other)
    run.checkpoints.rename(changed.checkpoints)
    assert start(changed, 2).wait() == [42, 42]
    assert "tie_word_embeddings" in log_of(changed)


def test_a_full_disk_ends_the_attempt_on_all_ranks_and_may_be_retried(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, pretrain_config(data, steps=200, checkpoint={"every_steps": 2}))
    assert start(run, 2, TEST_HOOK="full_disk").wait() == [1, 1]
    assert "No space left on device" in log_of(run)
    assert not list(run.checkpoints.rglob("manifest.json"))


def test_an_orphan_neither_saves_nor_logs(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, pretrain_config(data, steps=5000, checkpoint={"every_steps": 2}))
    group = start(run, 1)
    group.until(lambda: 3 in losses(run))
    run.begin_attempt()
    count = len(run.read_metrics())
    assert group.wait() == [EXIT_LOST_PEER]
    assert not list((run.attempt_dir(1)).rglob("fatal.json")), "it judges nobody but itself"
    assert len(run.read_metrics()) <= count + 1
    assert "was succeeded by 2" in (run.log_dir(1) / "rank-0.log").read_text()


@pytest.mark.s3
def test_checkpoints_on_s3_outlive_an_outage(data: Path, tmp_path: Path, s3_server: "S3Server") -> None:
    bucket = s3_server.bucket()
    config = pretrain_config(data, steps=8, checkpoint={"every_steps": 2, "path": f"{bucket}/checkpoints"})
    here, there = make_run(tmp_path, pretrain_config(data, steps=8)), make_run(tmp_path, config)
    launch(here, 2)
    group = start(there, 2, AWS_MAX_ATTEMPTS="1")  # else the client itself tries for some ten seconds
    group.until(lambda: bool(events(there, "checkpoint")))
    s3_server.cut()
    try:
        group.until(lambda: "retrying in" in log_of(there))
    finally:
        s3_server.restore()
    assert group.wait() == [0, 0], log_of(there)
    again = start(there, 1)
    assert again.wait() == [0], log_of(there)
    assert there.results()["train/loss"] == here.results()["train/loss"]


@pytest.mark.soak("half a minute; make test runs test_checkpoints_on_s3_outlive_an_outage")
@pytest.mark.s3
def test_a_store_that_stays_away_fails_the_attempt(data: Path, tmp_path: Path, s3_server: "S3Server") -> None:
    path = f"{s3_server.bucket()}/checkpoints"
    checkpoint = {"every_steps": 2, "path": path, "patience_seconds": 2}
    run = make_run(tmp_path, pretrain_config(data, steps=5000, checkpoint=checkpoint))
    group = start(run, 2)
    group.until(lambda: bool(events(run, "checkpoint")))
    s3_server.cut()
    try:
        assert group.wait() == [1, 1]
    finally:
        s3_server.restore()
    assert "StorageError" in log_of(run)

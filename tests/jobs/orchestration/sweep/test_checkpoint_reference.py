"""Checkpoint that a trial hands over: never chosen from an old listing, pinned while it may be needed."""

from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.orchestration.sweep.records import TrialRecord, write_record
from ropewalk.jobs.orchestration.sweep.trials.checkpoint_reference import checkpoint_of, release_all
from ropewalk.sharding.checkpoints.layout import MANIFEST_NAME, directory_of, is_pinned, write_step_list
from tests.fakes.nfs import Network, need_nfs


@pytest.fixture
def sweep(tmp_path: Path) -> RunDir:
    return RunDir.create("sweep", {"job": "sweep", "cluster": "local"}, tmp_path)


@pytest.fixture
def donor(tmp_path: Path) -> RunDir:
    config = {"checkpoint": {"every_steps": 10}}
    return RunDir.create("donor", {"job": "pretrain", "cluster": "local", "config": config}, tmp_path)


def commit(run: RunDir, step: int, told_steps: set[int], *, complete: bool = True) -> StoragePath:
    """Commit in the order of a save: files, pointer, manifest."""
    path = StoragePath(run.checkpoints)
    path.make(directory_of(step))
    write_step_list(path, told_steps | {step})
    if complete:
        path.write(f"{directory_of(step)}/{MANIFEST_NAME}", b"{}")
    return path


def test_the_steps_are_not_listed(sweep: RunDir, donor: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(donor, 10, set())
    commit(donor, 20, {10})
    names = StoragePath.names

    def only_of_a_step(self: StoragePath, name: str = "") -> list[str]:
        assert name == directory_of(20), "a listing may be a minute old, unless this client has changed the directory"
        return names(self, name)

    monkeypatch.setattr(StoragePath, "names", only_of_a_step)
    assert checkpoint_of(sweep, donor, 23, lambda: False) == {"run": donor.id, "step": 20}
    release_all(sweep, donor)
    assert not is_pinned(StoragePath(donor.checkpoints), 20)


def test_it_waits_until_the_manifest_is_there(sweep: RunDir, donor: RunDir) -> None:
    commit(donor, 10, set())
    path, looks = commit(donor, 20, {10}, complete=False), iter(range(100))

    def over() -> bool:
        if next(looks) == 2:
            path.write(f"{directory_of(20)}/{MANIFEST_NAME}", b"{}")
        return False

    assert checkpoint_of(sweep, donor, 20, over) == {"run": donor.id, "step": 20}


@pytest.mark.parametrize("ends", [True, False])
def test_one_that_never_comes_is_replaced_by_the_nearest(sweep: RunDir, donor: RunDir, ends: bool) -> None:
    path = commit(donor, 10, set())
    commit(donor, 20, {10}, complete=False)
    if not ends:
        commit(donor, 30, {10, 20})  # a later one is told: the run has gone past it
    result = checkpoint_of(sweep, donor, 20, lambda: ends)
    assert result["step"] in ({10} if ends else {10, 30})
    assert is_pinned(path, result["step"])
    assert not is_pinned(path, 20)


def test_a_run_without_checkpoints_hands_over_nothing(sweep: RunDir, donor: RunDir) -> None:
    assert checkpoint_of(sweep, donor, 5, lambda: True) == {}


def test_what_a_trial_has_made_use_of_stays_pinned(sweep: RunDir, donor: RunDir) -> None:
    path = commit(donor, 10, set())
    commit(donor, 20, {10})
    commit(donor, 30, {10, 20})
    lineage = [{"from_trial": 0, "from_run": donor.id, "step": 10, "parameters": {}}]
    for step in (10, 20):
        checkpoint_of(sweep, donor, step, lambda: False)
    write_record(sweep, TrialRecord(trial=1, parameters={}, lineage=lineage))
    checkpoint_of(sweep, donor, 10, lambda: False)
    checkpoint_of(sweep, donor, 30, lambda: False)
    assert [step for step in (10, 20, 30) if is_pinned(path, step)] == [10, 30]


def test_a_manifest_of_another_machine_is_seen_at_once(tmp_path: Path) -> None:
    """Though this machine has looked for it before it was there, and believes for a minute that it is not."""
    need_nfs()
    network = Network(tmp_path / "network")
    try:
        config = {"checkpoint": {"every_steps": 10}}
        there = RunDir.create("donor", {"job": "pretrain", "cluster": "local", "config": config}, network.client())
        root = network.client()
        sweep, here = RunDir.create("sweep", {"job": "sweep", "cluster": "local"}, root), RunDir(root / there.id)
        looks = iter(range(1000))

        def over() -> bool:
            look = next(looks)
            if look == 1:
                commit(there, 20, set(), complete=False)
            elif look == 4:
                StoragePath(there.checkpoints).write(f"{directory_of(20)}/{MANIFEST_NAME}", b"{}")
            assert look < 40, "it did not see the manifest"
            return False

        assert checkpoint_of(sweep, here, 20, over) == {"run": here.id, "step": 20}
    finally:
        network.close()

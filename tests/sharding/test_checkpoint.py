"""One rank's checkpoints on real storage: what is found, what is refused, what is kept."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import Shard, distribute_tensor

from ropewalk.cluster.errors import CheckpointError, StaleAttemptError, StorageError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.layout import newest_steps, steps_in
from ropewalk.sharding.checkpoints.state import State
from ropewalk.sharding.checkpoints.stored_tensors import StoredTensors, newest_complete
from ropewalk.sharding.config import CheckpointConfig
from ropewalk.sharding.group import Group, process_group
from tests.fakes.nfs import Network, need_nfs
from tests.patience import HANG_SECONDS

FINGERPRINT = {"hidden_size": 8, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORLD_SIZE", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        with process_group() as formed:
            yield formed


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    created = RunDir.create("test", {"job": "pretrain", "config": {}}, tmp_path)
    created.begin_attempt()
    return created


def checkpoints(run: RunDir, group: Group, keep: int = 3, fingerprint: dict[str, Any] = FINGERPRINT) -> Checkpoints:
    return Checkpoints(run, group, Fence(run, run.attempts()[-1], 0), CheckpointConfig(keep=keep), fingerprint)


def state(group: Group, value: float) -> State:
    weight = torch.arange(24.0).reshape(6, 4) + value
    half = torch.full((5,), value, dtype=torch.bfloat16)
    return {
        "model.weight": distribute_tensor(weight, group.mesh, [Shard(0)]),
        "model.half": distribute_tensor(half, group.mesh, [Shard(0)]),
        "optimizer.step": torch.tensor(float(value)),
        "model.empty": torch.empty(0, 3),
    }


def save(store: Checkpoints, group: Group, *steps: int) -> None:
    for step in steps:
        store.save(state(group, step), step=step, position=step * 8, progress={"loss": step / 3})
    store.wait()


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[no-any-return]


def test_what_is_saved_is_loaded(run: RunDir, group: Group) -> None:
    save(checkpoints(run, group), group, 5)
    store = checkpoints(run, group)
    match = store.find()
    assert match is not None
    folder, manifest = match
    assert (manifest.step, manifest.position, manifest.progress) == (5, 40, {"loss": 5 / 3})
    loaded = state(group, 0)
    store.load(folder, manifest, loaded)
    assert all(torch.equal(_whole(loaded[name]), _whole(value)) for name, value in state(group, 5).items())
    stored = StoredTensors(folder, manifest)
    assert sorted(stored.names) == sorted(loaded)
    assert all(torch.equal(stored.read_all()[name], _whole(value)) for name, value in state(group, 5).items())
    assert (stored.shape("model.weight"), stored.dtype("model.half")) == (torch.Size([6, 4]), torch.bfloat16)
    assert torch.equal(stored.read("model.weight", 2, 5), torch.arange(8.0, 20).reshape(3, 4) + 5)
    assert stored.read("model.weight", 3, 3).shape == (0, 4)


def test_nothing_is_pickled(run: RunDir, group: Group) -> None:
    save(checkpoints(run, group), group, 1)
    files = [path for path in run.checkpoints.glob("*/*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".json", ".safetensors"]
    flat = load_file(next(path for path in files if path.suffix == ".safetensors"))
    assert {name: tensor.numel() for name, tensor in flat.items()} == {
        "blocks": 1,
        "model.float32": 24,
        "model.bfloat16": 5,
        "optimizer.step.float32": 1,
    }


def test_the_state_is_copied_before_training_goes_on(run: RunDir, group: Group) -> None:
    store, tensors = checkpoints(run, group), state(group, 1)
    store.save(tensors, step=1, position=0, progress={})
    store.wait_for_copy()
    for tensor in tensors.values():
        tensor.zero_()
    store.wait()
    assert torch.equal(StoredTensors(*newest_complete(store.root)).read("model.half"), torch.ones(5).bfloat16())


def test_every_flipped_byte_is_found(run: RunDir, group: Group) -> None:
    save(checkpoints(run, group), group, 1)
    storage = StoragePath(run.checkpoints)
    for path in sorted((run.checkpoints / "step-00000001").iterdir()):
        whole = path.read_bytes()
        for position in range(0, len(whole), 1 if path.suffix == ".safetensors" else 7):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x11]) + whole[position + 1 :])
            with pytest.raises(CheckpointError, match=r"no complete checkpoint|block 0 .* it holds \w+\.\w+"):
                StoredTensors(*newest_complete(storage)).read_all()
        path.write_bytes(whole)
    assert newest_complete(storage)[1].step == 1


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "flipped", "empty manifest"])
def test_the_newest_that_verifies_wins_and_bad_ones_are_named(
    run: RunDir, group: Group, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(checkpoints(run, group), group, 1, 2, 3)
    folder = run.checkpoints / "step-00000003"
    data = next(folder.glob("*.safetensors"))
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "missing":
        data.unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "empty manifest":
        (folder / "manifest.json").write_text("")
    else:
        data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    store, loaded = checkpoints(run, group), state(group, 0)
    match = store.find()
    assert match is not None
    assert store.load(*match, loaded).step == 2
    assert all(torch.equal(_whole(loaded[name]), _whole(value)) for name, value in state(group, 2).items())
    bad = [event for event in run.read_events() if event["event"] == "bad_checkpoint"]
    assert [event["step"] for event in bad] == [3]
    messages = {"truncated": "bytes instead of", "missing": "is missing", "no manifest": "interrupted", "flipped": "checksum"}
    assert messages.get(damage, "damaged") in str(bad[0]["problems"])
    assert "step-00000003" in caplog.text


def test_a_bad_checkpoint_is_replaced_by_the_next_save_of_its_step(run: RunDir, group: Group) -> None:
    save(checkpoints(run, group), group, 1, 2)
    next((run.checkpoints / "step-00000002").glob("*.safetensors")).unlink()
    run.begin_attempt()
    store = checkpoints(run, group)
    match = store.find()
    assert match is not None
    assert match[1].step == 1
    save(store, group, 2)
    assert newest_complete(store.root)[1].attempt == 2


def test_keeps_the_newest_and_cleans_what_was_cut_short(run: RunDir, group: Group) -> None:
    store = checkpoints(run, group, keep=2)
    half = run.checkpoints / "step-00000009"
    half.mkdir(parents=True)
    (half / "0000-000000-rank-00000.safetensors").write_bytes(b"x")
    store.clean()
    save(store, group, 1, 2, 3, 4)
    assert steps_in(store.root) == [3, 4]


def test_the_next_save_does_not_wait_until_old_checkpoints_are_removed(
    run: RunDir, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, waits, remove = threading.Event(), list[bool](), StoragePath.remove

    def slow_remove(self: StoragePath, name: str) -> None:
        waits.append(released.wait(HANG_SECONDS))
        remove(self, name)

    monkeypatch.setattr(StoragePath, "remove", slow_remove)
    store = checkpoints(run, group, keep=1)
    for step in (1, 2, 3, 4):
        store.save(state(group, step), step=step, position=0, progress={})
    assert newest_complete(store.root)[1].step >= 3
    released.set()
    store.wait()
    assert all(waits)
    assert steps_in(store.root) == [4]


def test_a_bad_checkpoint_is_not_counted_as_kept(run: RunDir, group: Group) -> None:
    save(checkpoints(run, group, keep=1), group, 5)
    next((run.checkpoints / "step-00000005").glob("*.safetensors")).unlink()
    store = checkpoints(run, group, keep=1)
    assert store.find() is None
    save(store, group, 2)
    assert newest_complete(store.root)[1].step == 2


def test_another_model_is_refused_by_name(run: RunDir, group: Group) -> None:
    save(checkpoints(run, group), group, 1)
    with pytest.raises(CheckpointError, match="tie_word_embeddings is True there and False here"):
        checkpoints(run, group, fingerprint={**FINGERPRINT, "tie_word_embeddings": False}).find()


def test_other_tensors_are_refused_by_name(run: RunDir, group: Group) -> None:
    store = checkpoints(run, group)
    save(store, group, 1)
    match = store.find()
    assert match is not None
    with pytest.raises(CheckpointError, match=r"missing \['model.lm_head'\]"):
        store.load(*match, {**state(group, 0), "model.lm_head": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unknown \['optimizer.step'\]"):
        store.load(*match, {k: v for k, v in state(group, 0).items() if k != "optimizer.step"})


def test_an_old_attempt_cannot_commit(run: RunDir, group: Group) -> None:
    store = checkpoints(run, group)
    save(store, group, 1)
    run.begin_attempt()
    store.save(state(group, 2), step=2, position=0, progress={})
    with pytest.raises(StaleAttemptError, match="succeeded by 2"):
        store.wait()
    assert newest_complete(store.root)[1].step == 1


def test_an_attempt_that_grows_old_while_it_writes_cannot_commit(
    run: RunDir, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = checkpoints(run, group)
    create = StoragePath.create
    monkeypatch.setattr(StoragePath, "create", lambda self, name: (run.begin_attempt(), create(self, name))[1])
    store.save(state(group, 2), step=2, position=0, progress={})
    with pytest.raises(StaleAttemptError):
        store.wait()
    assert not list(run.checkpoints.rglob("manifest.json"))


def test_what_another_machine_has_just_committed_is_found(group: Group, tmp_path: Path) -> None:
    """A client caches listings and missing names for a minute, and must not clean up by them."""
    need_nfs()
    network = Network(tmp_path / "network")
    try:
        here = RunDir.create("test", {"job": "pretrain", "config": {}}, network.client())
        there = RunDir(network.client() / here.id)
        here.begin_attempt()
        first, second = checkpoints(here, group), checkpoints(there, group)
        assert second.find() is None
        save(first, group, 1, 2)
        assert second.find()[1].step == 2  # type: ignore[index]
        save(first, group, 3)
        shutil.move(here.checkpoints / "step-00000003/manifest.json", tmp_path / "manifest.json")
        assert second.find()[1].step == 2, "not committed yet"  # type: ignore[index]
        shutil.copy(tmp_path / "manifest.json", here.checkpoints / "step-00000003/manifest.json")
        assert second.find()[1].step == 3  # type: ignore[index]
        second.clean()
        assert second.find()[1].step == 3  # type: ignore[index]
    finally:
        network.close()


def test_metrics_are_durable_before_a_checkpoint_counts(run: RunDir, group: Group) -> None:
    store, observed = checkpoints(run, group), list[list[Path]]()
    store.before_commit = lambda step: observed.append(list(run.checkpoints.rglob("manifest.json")))
    save(store, group, 1)
    assert observed == [[]]

    def full(step: int) -> None:
        raise OSError(28, "No space left on device")

    store.before_commit = full
    with pytest.raises(StorageError, match="No space left on device"):
        save(store, group, 2)
    assert newest_steps(store.root) == [1, 2]
    assert store.find()[1].step == 1  # type: ignore[index]


def test_half_a_pointer_counts_for_nothing(run: RunDir, group: Group) -> None:
    store = checkpoints(run, group, keep=1)
    save(store, group, 1, 2)
    assert json.loads((run.checkpoints / "latest.json").read_bytes()) == {"steps": [2]}
    for content in (b"", b'{"steps": [', b"[3]", b'{"steps": ["x"]}'):
        (run.checkpoints / "latest.json").write_bytes(content)
        assert store.find()[1].step == 2  # type: ignore[index]


def test_a_manifest_says_what_the_contract_says(run: RunDir, group: Group) -> None:
    save(checkpoints(run, group), group, 7)
    manifest = json.loads((run.checkpoints / "step-00000007/manifest.json").read_text())
    assert {"files", "step", "position", "config_hash", "world_size", "attempt"} <= manifest.keys()
    assert {"path", "size", "checksum"} == manifest["files"][0].keys()


def test_checkpoints_lie_where_the_configuration_says(run: RunDir, group: Group, tmp_path: Path) -> None:
    elsewhere = CheckpointConfig(path=str(tmp_path / "elsewhere"))
    save(Checkpoints(run, group, Fence(run, 1, 0), elsewhere, FINGERPRINT), group, 1)
    assert (tmp_path / "elsewhere" / run.id / "step-00000001/manifest.json").is_file()

"""Any number of ranks loads what others saved, bit by bit; damage sends all of them to an older checkpoint."""

from pathlib import Path

import torch

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.checkpoint_list import list_checkpoints
from ropewalk.sharding.checkpoints.stored_tensors import StoredTensors, newest_complete
from tests.ranks import run_ranks
from tests.sharding.elastic_rank import rank_main, whole_state

OLD, NEW = 1, 2


def at_ranks(run: RunDir, ranks: int, *, replicate: int = 1, save: int | None = None, expected: tuple[int, ...] = ()) -> None:
    """Save a step and load the expected ones; a negative one is that of the newest checkpoint."""
    todo = {"replicate": replicate, "save": save, "expected": list(expected)}
    store = run_ranks(rank_main, ranks, run.path, todo)
    left = [key for key in store.list_keys() if "save/" in key]
    assert len(left) == (ranks > 1 and save is not None), "all messages of a save but the last one are removed"


def test_saved_at_4_ranks_and_2_by_2_loaded_at_1_2_3_and_4(tmp_path: Path) -> None:
    run = RunDir.create("test", {"job": "pretrain", "config": {}}, tmp_path)
    run.begin_attempt()
    at_ranks(run, 4, save=OLD)
    at_ranks(run, 4, replicate=2, save=NEW, expected=(OLD,))
    for step, writers in ((OLD, 4), (NEW, 2)):
        folder, manifest = newest_complete(StoragePath(run.checkpoints), step)
        assert len(manifest.files) == writers
        stored = StoredTensors(folder, manifest)
        assert all(torch.equal(stored.read(name), whole) for name, whole in whole_state(step).items())
        assert torch.equal(stored.read("model.large", 299, 452), whole_state(step)["model.large"][299:452])
    for ranks in (1, 3):  # four have loaded the older one above, and two load it below
        at_ranks(run, ranks, expected=(OLD, NEW))
    _flip_a_byte(run)
    at_ranks(run, 2, expected=(-OLD,))
    bad = [event["problems"] for event in run.read_events() if event["event"] == "bad_checkpoint"]
    assert len(bad) == 1
    assert "rank-00001.safetensors: block 1 does not match its checksum; it holds model.large" in str(bad)
    summaries = list_checkpoints(StoragePath(run.checkpoints), verify=True)
    assert [(each.step, each.verified, each.mesh) for each in summaries] == [
        (OLD, True, {"shard": 4}),
        (NEW, False, {"replicate": 2, "shard": 2}),
    ]
    assert "block 1" in summaries[1].problems[0]


def _flip_a_byte(run: RunDir) -> None:
    """Damage the newest checkpoint in the second block of the file of rank 1."""
    path = next((run.checkpoints / "step-00000002").glob("*rank-00001.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

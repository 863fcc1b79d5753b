"""`ropewalk checkpoints`: what a run has saved, and what of it is damaged."""

import json

import pytest
import torch

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.sharding.checkpoints.checkpoint import Checkpoints
from ropewalk.sharding.checkpoints.layout import pin
from ropewalk.sharding.config import CheckpointConfig
from ropewalk.sharding.group import process_group
from tests.jobs.shell import Shell


def test_checkpoints_are_listed_and_damage_is_named(shell: Shell, running: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # to look changes nothing
        assert shell("checkpoints", running.id) == f"{running.id} has no checkpoints yet\n"
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group() as group:
        store = Checkpoints(running, group, Fence(running, 1, 0), CheckpointConfig(), {})
        for step in (10, 20):
            state = {"model.weight": torch.randn(300, 1000), "optimizer.weight.step": torch.tensor(1.0)}
            store.save(state, step=step, position=0, progress={"best_step": 10})
        store.close()
    assert "trains no model" in shell.mistake("checkpoints", running.id)
    running.model_record.write_text("{}")
    pin(store.root, 20, "other-run")
    lines = [line.strip() for line in shell("checkpoints", running.id, "--verify").splitlines()]
    first, second = (next(line for line in lines if line.startswith(step)) for step in ("10 ", "20 "))
    assert "best" in first
    assert "pinned by other-run" in second
    assert all("shard 1" in line and "verified" in line for line in (first, second))
    path = next((running.checkpoints / "step-00000020").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert "complete" in shell("checkpoints", running.id)
    (running.checkpoints / "step-00000030").mkdir()
    report = json.loads(shell("checkpoints", running.id, "--verify", "--json", expect=1))
    assert report["run"] == running.id
    intact, damaged, unfinished = report["checkpoints"]
    assert (intact["step"], intact["best"], intact["verified"], intact["problems"]) == (10, True, True, [])
    assert (intact["world_size"], intact["mesh"]) == (1, {"shard": 1})
    assert intact["bytes"] > 300 * 1000 * 4
    assert (damaged["pinned_by"], damaged["verified"]) == (["other-run"], False)
    assert "block 1 does not match its checksum; it holds model.weight" in damaged["problems"][0]
    assert "interrupted" in unfinished["problems"][0]

"""The nodes of a placement group: what a command finds there."""

from pathlib import Path

import pytest

from ropewalk.jobs.orchestration.sweep.trials.ray_allocation import NodeServer


def test_a_trial_has_the_gpus_that_ray_gave_its_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All trials took GPU 0: the variable was left out as one of the sweep's own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as Ray sets it in the actor's process
    monkeypatch.setenv("ROPEWALK_MACHINE_DEVICES", "0,1,2,3")
    monkeypatch.setenv("ROPEWALK_NODE_GPUS", "4")
    server = NodeServer()
    try:
        command = 'echo "$CUDA_VISIBLE_DEVICES|$ROPEWALK_MACHINE_DEVICES|$ROPEWALK_NODE_GPUS"'
        server.processes[server.start(["sh", "-c", command], {"ROPEWALK_NODE_GPUS": "1"}, str(tmp_path / "log"))].wait()
    finally:
        server.close()
    assert (tmp_path / "log").read_text() == "3||1\n"

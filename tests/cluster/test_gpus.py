"""The GPUs of a machine that has none: who gets which, and who is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.backends.local.held_gpus import HeldGpus
from ropewalk.cluster.backends.local.nodes import render_script
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.gpus import deal_devices, gpu_percent, machine_devices, rank_gpu
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.spec import Engine
from tests.cluster.conftest import ToyRun
from tests.fakes.gpus import machine_with

TWO_UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-1a2b"


@pytest.mark.parametrize(
    ("gpus", "variables", "expected"),
    [
        (None, {}, []),
        (2, {}, ["0", "1"]),
        (8, {"CUDA_VISIBLE_DEVICES": "5, 3"}, ["5", "3"]),
        (8, {"CUDA_VISIBLE_DEVICES": TWO_UUIDS}, TWO_UUIDS.split(",")),
        (2, {"CUDA_VISIBLE_DEVICES": "1,2,0"}, ["1"]),  # as CUDA: nothing from the first wrong one on
        (8, {"CUDA_VISIBLE_DEVICES": "1,-1,2"}, ["1"]),
        (8, {"CUDA_VISIBLE_DEVICES": "1,1"}, []),
        (8, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (8, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        (None, {"CUDA_VISIBLE_DEVICES": "0,1"}, ["0", "1"]),  # without NVML, as on AMD's, the user is believed
        (8, {"CUDA_VISIBLE_DEVICES": "", "ROPEWALK_MACHINE_DEVICES": "all"}, [str(n) for n in range(8)]),
        (8, {"CUDA_VISIBLE_DEVICES": "4", "ROPEWALK_MACHINE_DEVICES": "4,6"}, ["4", "6"]),
    ],
)
def test_the_devices_of_the_machine_are_found_without_cuda(
    monkeypatch: pytest.MonkeyPatch, gpus: int | None, variables: dict[str, str], expected: list[str]
) -> None:
    machine_with(gpus, monkeypatch, **variables)
    assert machine_devices() == expected


def test_devices_are_dealt_to_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(8, monkeypatch, CUDA_VISIBLE_DEVICES="7,6,5,4,3")
    assert deal_devices(Resources.model_validate({"nodes": 2, "gpus": 2})) == [["7", "6"], ["5", "4"]]
    assert deal_devices(Resources.model_validate({"nodes": "1..2", "gpus": 1})) == [["7"], ["6"]]
    assert deal_devices(Resources.model_validate({"nodes": 3})) == [[], [], []]


def test_runs_of_this_machine_are_dealt_gpus_that_no_other_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine_with(4, monkeypatch, FAKE_GPUS_IN_USE="0")
    first, two, three = (HeldGpus(tmp_path) for _ in range(3))
    assert first.take(2) == ["1", "2"], "somebody's process computes on the first"
    assert first.take(2) == ["1", "2"], "as the next attempt of the same run"
    assert (two.take(1), two.shared(["3"])) == (["3"], [])
    assert three.take(2) == ["0", "1"]
    assert three.shared(["0", "1"]) == ["1"], "too few are free, and it says so"
    first.release()
    assert two.take(2) == ["1", "3"], "what it has it keeps"
    machine_with(4, monkeypatch, CUDA_VISIBLE_DEVICES="3,2")
    assert HeldGpus(tmp_path).take(2) == ["3", "2"]


@pytest.mark.parametrize(
    ("local_rank", "variables", "expected"),
    [
        (1, {"ROPEWALK_NODE_GPUS": "2", "CUDA_VISIBLE_DEVICES": "3, 2"}, "2"),
        (1, {"ROPEWALK_NODE_GPUS": "4", "CUDA_VISIBLE_DEVICES": "3,2,1,0"}, "1"),  # each of two ranks has two
        (1, {"ROPEWALK_NODE_GPUS": "2"}, "1"),
        (1, {"ROPEWALK_NODE_GPUS": "2", "CUDA_VISIBLE_DEVICES": TWO_UUIDS}, TWO_UUIDS.split(",")[1]),
        (1, {"ROPEWALK_NODE_GPUS": "0", "CUDA_VISIBLE_DEVICES": "3,2"}, None),
        (0, {}, None),
    ],
)
def test_the_gpu_of_a_rank(local_rank: int, variables: dict[str, str], expected: str | None) -> None:
    assert rank_gpu(local_rank, 2, variables) == expected


def test_the_use_of_a_gpu_is_unknown_where_nvml_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(2, monkeypatch)
    assert [gpu_percent(device) for device in ("1", *TWO_UUIDS.split(","))] == [50.0, 50.0, None]
    machine_with(None, monkeypatch)
    assert gpu_percent("0") is None


@pytest.mark.parametrize(
    ("gpus", "resources", "arguments"),
    [
        (0, {"gpus": 1}, ["are 1 GPU,", "machine has 0", "resources.gpus=0", "--on"]),
        (1, {"nodes": 2, "gpus": 1}, ["are 2 GPUs", "machine has 1", "resources.nodes=1"]),
        (2, {"nodes": 2, "gpus": 2}, ["are 4 GPUs", "machine has 2", "resources.gpus=1", "resources.nodes=1"]),
        (2, {"nodes": "1..4", "gpus": 1}, ["are 4 GPUs", "machine has 2", "resources.nodes=2"]),
    ],
)
def test_too_few_gpus_are_refused_at_submission_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: int, resources: dict[str, Any], arguments: list[str]
) -> None:
    machine_with(gpus, monkeypatch)
    backend, wanted = LocalBackend(Profile(name="local", backend="local")), Resources.model_validate(resources)
    run = RunDir.create("toy", {"job": "toy", "engine": "ranks", "config": {}}, tmp_path)
    with pytest.raises(ConfigError) as refused:
        backend.submit(run, wanted)
    assert not [word for word in arguments if word not in str(refused.value)], refused.value
    assert run.attempts() == [], "nothing was begun"
    with pytest.raises(ConfigError):
        backend.submit_many([run], wanted)


def test_the_dry_run_shows_whose_devices_are_which(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(4, monkeypatch)
    script = render_script("runs/r", "1", Resources.model_validate({"nodes": 2, "gpus": 2}), Engine.RANKS)
    agents = [line.split()[0] for line in script.splitlines() if "ropewalk.cluster.agent" in line]
    assert agents == ["CUDA_VISIBLE_DEVICES=0,1", "CUDA_VISIBLE_DEVICES=2,3"]


@pytest.mark.parametrize(("users", "order"), [({}, "PCI_BUS_ID"), ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "FASTEST_FIRST")])
def test_devices_are_counted_as_nvml_counts_them(
    toy: Callable[..., ToyRun], monkeypatch: pytest.MonkeyPatch, users: dict[str, str], order: str
) -> None:
    """CUDA counts from the fastest on, and a run would compute on another GPU than the one that it was dealt and holds."""
    machine_with(2, monkeypatch, CUDA_VISIBLE_DEVICES="1,0", **users)
    assert f" CUDA_DEVICE_ORDER={order} " in render_script("runs/r", "1", Resources.model_validate({"gpus": 1}), Engine.RANKS)
    run = toy("devices", "ranks", resources={"gpus": 1})
    assert run.finish().state == "SUCCEEDED", run.run.last_outcome()
    assert (read_json(run.run.path / "devices-0.json") or {})["order"] == order


def test_gpus_that_another_run_or_a_process_uses_are_occupied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine_with(4, monkeypatch, FAKE_GPUS_IN_USE="0")
    run, other = HeldGpus(tmp_path), HeldGpus(tmp_path)
    assert run.take(1) == ["1"]
    assert other.unoccupied() == ["2", "3"]
    assert (run.shared(["1"]), other.shared(["2", "3"])) == ([], ["2", "3"]), "looking at them holds none"
    machine_with(4, monkeypatch, CUDA_VISIBLE_DEVICES=TWO_UUIDS, FAKE_GPUS_IN_USE="0")  # the first UUID is that of GPU 0
    assert other.unoccupied() == TWO_UUIDS.split(",")[1:]


def test_ranks_of_virtual_nodes_see_their_own_devices_alone(toy: Callable[..., ToyRun], monkeypatch: pytest.MonkeyPatch) -> None:
    machine_with(4, monkeypatch, CUDA_VISIBLE_DEVICES="3,2,1")
    with_gpus = toy("devices", "ranks", resources={"nodes": 2, "gpus": 1})
    without = toy("devices", "ranks", resources={"nodes": 1, "ranks_per_node": 2})
    for run in (with_gpus, without):
        assert run.finish().state == "SUCCEEDED", run.run.last_outcome()
    devices = [read_json(with_gpus.run.path / f"devices-{rank}.json") for rank in range(2)]
    assert [(answer["visible"], answer["given"]) for answer in devices if answer] == [("3", "1"), ("2", "1")]
    assert [event["devices"] for event in with_gpus.run.read_events() if event["event"] == "gpus_taken"] == ["3, 2"]
    assert [answer["nvml"] for answer in devices if answer] == ["1", "1"], (
        "who asks torch for GPUs starts no CUDA in what ranks are forked from"
    )
    devices = [read_json(without.run.path / f"devices-{rank}.json") for rank in range(2)]
    assert [(answer["visible"], answer["given"], answer["device"]) for answer in devices if answer] == [("", "0", "cpu")] * 2

"""Energy of a node is divided so that the shares of all runs and the rest sum to its counters; what cannot be read has no key."""

import random
from typing import Any

import pytest

from ropewalk.cluster.agent import energy
from ropewalk.cluster.agent.energy import Cpu, EnergyAccount, Gpu

CORES = 16


class Node:
    """A machine with four GPUs and two packages, whose counters advance by known amounts."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.gpu_joules = [self.draw.uniform(0, 1e6) for _ in range(4)]
        self.packages = {"intel-rapl:0": 90.0, "intel-rapl:1": 10.0}
        self.wraps = dict.fromkeys(self.packages, 100.0)  # they begin again all the time
        self.used = dict.fromkeys(("a", "b", "others"), 0.0)
        self.idle, self.spent_gpu, self.spent_cpu = 0.0, 0.0, 0.0

    def advance(self, seconds: float = 5.0) -> None:
        for index in range(4):
            joules = self.draw.uniform(50, 700) * seconds
            self.gpu_joules[index] += joules
            self.spent_gpu += joules
        for name in self.packages:
            joules = self.draw.uniform(1, 15) * seconds
            self.packages[name] = (self.packages[name] + joules) % self.wraps[name]
            self.spent_cpu += joules
        capacity = CORES * seconds
        for name in self.used:
            part = self.draw.uniform(0, 0.3) * capacity
            self.used[name] += part
            capacity -= part
        self.idle += capacity


class Power:
    """The view of one run: its GPUs and CPU time."""

    def __init__(self, node: Node, run: str, gpus: set[int], **changes: Any) -> None:
        self.node, self.run, self.mine, self.changes = node, run, gpus, changes

    def gpus(self) -> list[Gpu]:
        return [
            Gpu(f"GPU-{index}", joules, index in self.mine)._replace(**self.changes)
            for index, joules in enumerate(self.node.gpu_joules)
        ]

    def cpu(self) -> Cpu:
        node, busy = self.node, sum(self.node.used.values())
        return Cpu(dict(node.packages), node.wraps, node.used[self.run], busy, busy + node.idle)


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy.os, "cpu_count", lambda: CORES)


@pytest.mark.parametrize("seed", range(5))
def test_runs_and_the_rest_sum_to_the_node(seed: int) -> None:
    """Two runs share a node; one is requeued twice, by which its agent begins again."""
    node = Node(seed)
    a: Any = Power(node, "a", {0, 1})
    b: Any = Power(node, "b", {2})
    of_a = {"gpu": 0.0, "gpu_others": 0.0, "cpu": 0.0, "cpu_others": 0.0}
    account_b = EnergyAccount(b, 4)
    for _ in range(3):
        account_a = EnergyAccount(a, 6)
        for _ in range(40):
            node.advance()
            sample_a, sample_b = account_a.sample(), account_b.sample()
        for kind in of_a:
            of_a[kind] += sample_a[f"energy_{kind}_joules"]
    for kind, spent in (("gpu", node.spent_gpu), ("cpu", node.spent_cpu)):
        assert of_a[kind] + of_a[f"{kind}_others"] == pytest.approx(spent, rel=1e-3)
        assert sample_b[f"energy_{kind}_joules"] + sample_b[f"energy_{kind}_others_joules"] == pytest.approx(spent, rel=1e-3)
        not_ours = spent - of_a[kind] - sample_b[f"energy_{kind}_joules"]
        assert 0 < not_ours < spent
    assert of_a["gpu"] == pytest.approx(sum(node.gpu_joules[:2]) - sum(Node(seed).gpu_joules[:2]), rel=1e-3)


@pytest.mark.parametrize("changes", [{"joules": None}, {"divided": True}])
def test_a_gpu_without_a_counter_of_its_own_is_unknown(changes: dict[str, Any]) -> None:
    power: Any = Power(Node(0), "a", {0}, **changes)
    account = EnergyAccount(power, None)
    power.node.advance()
    assert account.sample() == {}


def test_a_counter_that_begins_again_makes_the_energy_unknown() -> None:
    power: Any = Power(Node(0), "a", {0})
    account = EnergyAccount(power, 4)
    power.node.advance()
    assert "energy_gpu_joules" in account.sample()
    power.node.gpu_joules[0] = 1.0
    assert not any("gpu" in key for key in account.sample())

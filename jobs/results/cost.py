"""Cost of runs: node-hours, core-hours, GPU-hours and idle ones, energy, carbon dioxide, money. What is not known is None."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from ropewalk.cluster.config_reader import load_section, read_yaml
from ropewalk.cluster.gpus import IDLE_PERCENT, gpu_percents
from ropewalk.cluster.process.log_rotation import predecessor
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import parse_lines
from ropewalk.cluster.run.names import AGENTS, NODES
from ropewalk.cluster.run.phase_clock import TimeClass
from ropewalk.cluster.section import Section
from ropewalk.jobs.results.goodput import goodput_of

PRICES_VARIABLE = "ROPEWALK_PRICES"
_JOULES = 3.6e6  # of a kWh


class Prices(Section):
    """Prices of a cluster. An amount without a price costs nothing; money is unknown if an amount with a price is."""

    core_hour: float | None = Field(default=None, ge=0)
    gpu_hour: float | None = Field(default=None, ge=0)
    kwh: float | None = Field(default=None, ge=0)
    co2_grams_per_kwh: float | None = Field(default=None, ge=0)
    currency: str = "EUR"


@dataclass(frozen=True)
class Cost:
    """Amounts of one or more runs; None: not all of it is known."""

    node_hours: float | None = 0.0
    spare_node_hours: float | None = 0.0  # a part of the node-hours
    core_hours: float | None = 0.0
    gpu_hours: float | None = 0.0
    gpu_idle_hours: float | None = 0.0
    gpu_kwh: float | None = 0.0
    cpu_kwh: float | None = 0.0
    co2_kg: float | None = 0.0
    money: float | None = 0.0

    def __add__(self, other: Self) -> "Cost":
        pairs = ((getattr(self, each.name), getattr(other, each.name)) for each in fields(Cost))
        return Cost(*(None if None in pair else pair[0] + pair[1] for pair in pairs))

    def plain(self) -> dict[str, float | None]:
        return {name: None if value is None else round(value, 6) for name, value in asdict(self).items()}


def prices_path() -> Path:
    """Return $ROPEWALK_PRICES, else ~/.config/ropewalk/prices.yaml."""
    return Path(os.environ.get(PRICES_VARIABLE) or "~/.config/ropewalk/prices.yaml").expanduser()


def read_prices() -> Mapping[str, Prices]:
    """Return the prices by cluster; none without a file of prices."""
    path = prices_path()
    if not path.is_file():
        return {}
    return {str(name): load_section(Prices, values, f"{path}: {name}") for name, values in read_yaml(path).items()}


def cost_of(run: RunDir, prices: Mapping[str, Prices], now: float | None = None) -> Cost:
    """Return the cost of a run's attempts so far, without that of the runs that it started."""
    total = Cost()
    cluster = prices.get(str(run.record.get("cluster")), Prices())
    for attempt in run.attempts():
        total += _priced(_attempt(run, attempt, now or time.time()), cluster)
    if not any(run.resources(attempt).spare_nodes for attempt in run.attempts()):
        return total
    seconds = goodput_of(run, trains=True, until=now).node_seconds
    return replace(total, spare_node_hours=seconds.get(TimeClass.SPARE, 0.0) / 3600)


def _attempt(run: RunDir, attempt: int, now: float) -> Cost:
    folder = run.attempt_dir(attempt)
    resources = run.resources(attempt)
    starts = _starts(folder / AGENTS)
    if not starts:
        return Cost()  # it had no nodes
    hours = 0.0
    idle: float | None = 0.0
    gpu_joules: float | None = 0.0
    cpu_joules: float | None = 0.0
    outcome = run.outcome(attempt)
    for node, started in starts.items():
        samples = _samples(folder / NODES / f"node-{node}.jsonl")
        last = float(samples[-1]["time"]) if samples else (outcome.ended if outcome is not None and outcome.ended else now)
        hours += max(0.0, last - started[0]) / 3600
        idle = _sum(idle, _idle_hours(samples, resources.gpus) if resources.gpus else 0.0)
        gpu_joules = _sum(gpu_joules, _energy(samples, "energy_gpu_joules") if resources.gpus else 0.0)
        cpu_joules = _sum(cpu_joules, _energy(samples, "energy_cpu_joules"))
    return Cost(
        node_hours=hours,
        core_hours=hours * resources.cpus if resources.cpus else None,
        gpu_hours=hours * resources.gpus,
        gpu_idle_hours=idle,
        gpu_kwh=None if gpu_joules is None else gpu_joules / _JOULES,
        cpu_kwh=None if cpu_joules is None else cpu_joules / _JOULES,
    )


def _priced(cost: Cost, prices: Prices) -> Cost:
    """Add carbon dioxide, and the money of all amounts that have a price."""
    kwh = _sum(cost.gpu_kwh, cost.cpu_kwh)
    co2 = None if kwh is None or prices.co2_grams_per_kwh is None else kwh * prices.co2_grams_per_kwh / 1000
    parts = [(cost.core_hours, prices.core_hour), (cost.gpu_hours, prices.gpu_hour), (kwh, prices.kwh)]
    charged = [(amount, price) for amount, price in parts if price is not None]
    money = _sum(*(None if amount is None else amount * price for amount, price in charged)) if charged else None
    return replace(cost, co2_kg=co2, money=money)


def why_unknown(amount: str, run: RunDir, cost: Cost, prices: Mapping[str, Prices]) -> str:
    """Return why an amount of a run's cost is None, and what would make it known."""
    cluster, path = str(run.record.get("cluster")), prices_path()
    of_cluster, kwh = prices.get(cluster, Prices()), _sum(cost.gpu_kwh, cost.cpu_kwh)
    match amount:
        case "core_hours" | "cpu_kwh" if cost.core_hours is None:
            return "the run has no `resources.cpus`, the number of cores of a node; set it for the next one"
        case "cpu_kwh":
            return (
                "a node had no counters of its processors' energy that you may read; Linux shows those of RAPL to root alone,"
                " since they tell what others compute (CVE-2020-8694); an administrator may open /sys/class/powercap/*/energy_uj"
            )
        case "gpu_idle_hours":
            return "NVML did not show the use of a node's GPUs, or showed GPUs of others too; ask for all GPUs of the machine"
        case "gpu_kwh":
            return "a node's GPUs have no counter of energy of their own; NVIDIA's have one if they are not divided (MIG)"
        case "co2_kg" if kwh is None:
            return "the energy is unknown"
        case "co2_kg":
            return f"{path} has no `co2_grams_per_kwh` of the cluster {cluster!r}"
    if of_cluster.core_hour is of_cluster.gpu_hour is of_cluster.kwh is None:
        return f"{path} has no prices of the cluster {cluster!r}, such as `{cluster}: {{core_hour: 0.01, gpu_hour: 2.0}}`"
    return "an amount that has a price is unknown"


def _starts(path: Path) -> dict[int, list[float]]:
    """Return the times at which agents started, by node."""
    starts: dict[int, list[float]] = {}
    for line in parse_lines(path.read_bytes())[0] if path.exists() else ():
        if "node" in line and "started" in line:
            starts.setdefault(int(line["node"]), []).append(float(line["started"]))
    return starts


def _samples(path: Path) -> list[dict[str, Any]]:
    lines = [line for each in (predecessor(path), path) if each.exists() for line in parse_lines(each.read_bytes())[0]]
    return [line for line in lines if isinstance(line.get("time"), int | float)]


def _energy(samples: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Return the energy of a node from a cumulative counter, which begins again with each agent; None if it ever lacks."""
    total, previous = 0.0, 0.0
    for sample in samples:
        if key not in sample:
            return None
        total += sample[key] - previous if sample[key] >= previous else sample[key]
        previous = float(sample[key])
    return total if samples else None


def _idle_hours(samples: Sequence[Mapping[str, Any]], gpus: int) -> float | None:
    """Return the hours in which GPUs did nothing, from the samples of their use; None if there are none."""
    hours, measured = 0.0, False
    for before, sample in pairwise(samples):
        percents = gpu_percents(sample)
        if len(percents) > gpus:
            return None  # GPUs of others are among them
        measured |= bool(percents)
        idle = sum(percent < IDLE_PERCENT for percent in percents)
        hours += idle * max(0.0, sample["time"] - before["time"]) / 3600
    return hours if measured else None


def _sum(*values: float | None) -> float | None:
    return None if None in values else sum(value for value in values if value is not None)


def total_of(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs; an amount that one of them does not know is unknown."""
    return sum(costs, Cost())

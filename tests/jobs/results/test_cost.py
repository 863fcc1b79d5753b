"""Cost of runs from samples: hours, idle ones, energy and money by group; what was not measured is unknown, never 0."""

import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_line, append_lines
from ropewalk.jobs.results.cost import Cost, Prices, cost_of, total_of
from ropewalk.jobs.runs.show.cost import cost_page
from tests.jobs.conftest import shell  # noqa: F401
from tests.jobs.shell import Shell

PRICES = {"big": Prices(core_hour=0.01, gpu_hour=2.0, kwh=0.3, co2_grams_per_kwh=400)}
HOUR = 3600.0


def make(root: Path, *, gpus: int = 2, cpus: int | None = 4, attempts: int = 1, leave_out: str = "", **record: Any) -> RunDir:
    """A run of two nodes whose agents each ran for an hour, a third of it with one idle GPU."""
    resources = {"nodes": 2, "cpus": cpus, "gpus": gpus}
    run = RunDir.create("test", {"job": "command", "config": {}, "cluster": "big", "resources": resources, **record}, root)
    for _ in range(attempts):
        attempt = run.begin_attempt(resources=resources)
        (run.attempt_dir(attempt) / "nodes").mkdir(exist_ok=True)
        for node in range(2):
            append_line(run.attempt_dir(attempt) / "agents.jsonl", {"node": node, "started": 1000.0})
            lines = [
                {"time": 1000.0 + HOUR * third / 3, "node": node}
                | {f"gpu{index}_percent": 0.0 if third == 1 and index == 0 else 80.0 for index in range(gpus)}
                | {"energy_gpu_joules": 1.2e6 * third, "energy_cpu_joules": 0.3e6 * third}
                for third in range(4)
            ]
            lines = [{key: value for key, value in line.items() if key != leave_out} for line in lines]
            append_lines(run.attempt_dir(attempt) / f"nodes/node-{node}.jsonl", lines)
    return run


def test_hours_energy_and_money_of_a_requeued_run(tmp_path: Path) -> None:
    cost = cost_of(make(tmp_path, attempts=3), PRICES)
    expected = Cost(
        node_hours=6.0, core_hours=24.0, gpu_hours=12.0, gpu_idle_hours=2.0, gpu_kwh=6.0, cpu_kwh=1.5, co2_kg=3.0, money=26.49
    )
    assert cost.plain() == pytest.approx(expected.plain())


@pytest.mark.parametrize(
    ("leave_out", "unknown"),
    [
        ("energy_gpu_joules", {"gpu_kwh", "co2_kg", "money"}),
        ("energy_cpu_joules", {"cpu_kwh", "co2_kg", "money"}),
    ],
)
def test_what_was_not_measured_is_unknown(tmp_path: Path, leave_out: str, unknown: set[str]) -> None:
    plain = cost_of(make(tmp_path, leave_out=leave_out), PRICES).plain()
    assert {name for name, value in plain.items() if value is None} == unknown
    assert cost_of(make(tmp_path), {}).money is None, "without prices"
    whole = total_of([cost_of(make(tmp_path, leave_out=leave_out), PRICES), cost_of(make(tmp_path), PRICES)])
    assert {name for name, value in whole.plain().items() if value is None} == unknown


@pytest.mark.parametrize(
    ("amount", "text", "changes"),
    [
        ("core_hours", "`resources.cpus`", {"cpus": None}),
        ("cpu_kwh", "`resources.cpus`", {"cpus": None, "leave_out": "energy_cpu_joules"}),
        ("cpu_kwh", "administrator may open /sys/class/powercap", {"leave_out": "energy_cpu_joules"}),
        ("gpu_kwh", "MIG", {"leave_out": "energy_gpu_joules"}),
        ("gpu_idle_hours", "GPUs of others", {"leave_out": "gpu0_percent", "gpus": 1}),
        ("co2_kg", "the energy is unknown", {"leave_out": "energy_gpu_joules"}),
        ("co2_kg", "`co2_grams_per_kwh` of the cluster 'small'", {"cluster": "small"}),
        ("money", "`small: {core_hour: 0.01, gpu_hour: 2.0}`", {"cluster": "small"}),
        ("money", "an amount that has a price", {"leave_out": "energy_gpu_joules"}),
    ],
)
def test_what_is_unknown_has_a_reason_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: str, text: str, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr("ropewalk.jobs.runs.show.cost.read_prices", lambda: PRICES)
    make(tmp_path)
    run = make(tmp_path, **changes)
    page = cost_page([run], "run")
    assert set(page["unknown"]) == {name for name, value in page["total"].items() if value is None}
    assert page["unknown"][amount].startswith(f"{run.id}: ")
    assert text in page["unknown"][amount]


def test_an_agent_that_began_again_counts_on(tmp_path: Path) -> None:
    run = make(tmp_path, gpus=1)
    line = {"time": 1000.0 + HOUR, "node": 0, "gpu0_percent": 50.0, "energy_gpu_joules": 0.6e6, "energy_cpu_joules": 0.0}
    append_line(run.attempt_dir(1) / "nodes/node-0.jsonl", line)
    assert cost_of(run, PRICES).gpu_kwh == pytest.approx(2.0 + 0.6 / 3.6)


def test_cost_groups_runs(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    root = shell.home / "runs"
    root.mkdir()
    prices = shell.home / "prices.yaml"
    prices.write_text("big: {gpu_hour: 2.0, currency: USD}\n")
    monkeypatch.setenv("ROPEWALK_PRICES", str(prices))
    for project in ("p", "p", "q"):
        make(root, config={"wandb": {"project": project}}, created=1_700_000_000.0)
    page = json.loads(shell("cost", "--by", "project", "--json"))
    assert [(row["name"], row["runs"], row["money"]) for row in page["rows"]] == [("p", 2, 16.0), ("q", 1, 8.0)]
    assert (page["total"]["money"], page["currency"]) == (24.0, "USD")
    assert [row["name"] for row in json.loads(shell("cost", "--by", "month", "--json"))["rows"]] == ["2023-11"]
    lines = shell("cost").splitlines()
    assert "USD" in lines[1]
    assert "unknown" in lines[-3], "CO2 has no factor"
    assert lines[-1].startswith("co2 kg unknown: "), lines[-1]
    prices.write_text("big: {gpu_hours: 2.0}\n")
    assert "gpu_hours" in shell.mistake("cost")

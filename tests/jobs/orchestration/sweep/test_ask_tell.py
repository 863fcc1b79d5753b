"""The search of a sweep for a loop of one's own: `sweep ask` and `sweep tell`."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from ropewalk.jobs.orchestration.sweep.report.results import read_sweep
from tests.fakes.sweep import BASE, make_sweep
from tests.jobs.shell import Shell

FILE = """
job: pretrain
base: {data: data, seq_len: 16, steps: 20}
space: {optim.lr: {loguniform: [1.0e-4, 1.0]}}
metric: validation/loss
search: optuna
optuna: {startup_trials: 4}
trials: 12
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return str(path)


def tell(shell: Shell, file: str, monkeypatch: pytest.MonkeyPatch, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(line) + "\n" for line in lines)))
    return [json.loads(line) for line in shell("sweep", "tell", file, "--json").splitlines()]


def test_a_loop_of_ones_own_asks_and_tells(shell: Shell, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [json.loads(shell("sweep", "ask", file, "--json")) for _ in range(2)]
    assert [answer["trial"] for answer in trials] == [0, 1]
    assert trials[0]["parameters"] != trials[1]["parameters"]
    assert "no run 'other'" in shell.mistake("sweep", "ask", file, "warm_start=[other]")
    recorded = tell(shell, file, monkeypatch, {"trial": 1, "value": 3.5, "step": 20}, {"trial": 0, "state": "failed"})
    assert recorded == [
        {"trial": 1, "step": 20, "value": 3.5, "state": "complete"},
        {"trial": 0, "step": 1, "value": None, "state": "failed"},
    ]
    lines = Path(file).with_suffix(".trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["trial"] for line in lines] == [0, 1, 1, 0]
    for wrong, message in (
        ({"trial": 2, "value": 1.0}, "trial 2 was never asked for; 2 were"),
        ({"trial": 1, "value": 1.0}, "trial 1 has ended"),
        ({"trial": 1, "loss": 1.0}, "tell: loss:"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(wrong)))
        assert message in shell.mistake("sweep", "tell", file)
    for _ in range(10):
        shell("sweep", "ask", file, "--json")
    assert shell("sweep", "ask", file, "--json").strip() == "null"


def test_a_loop_of_ones_own_knows_the_trials_of_earlier_sweeps(shell: Shell, tmp_path: Path) -> None:
    base = {**BASE, "data": str(tmp_path / "data"), "steps": 270}
    earlier = make_sweep(shell.home / "runs", base=base)
    config = {key: earlier.record["config"][key] for key in ("job", "base", "space", "metric")}
    file = tmp_path / "warm.yaml"
    file.write_text(json.dumps({**config, "search": "gp", "warm_start": [earlier.id]}))
    warm = json.loads(shell("sweep", "ask", str(file), "--json"))["parameters"]
    cold = json.loads(shell("sweep", "ask", str(file), "warm_start=[]", "--state", str(tmp_path / "cold"), "--json"))[
        "parameters"
    ]
    best = read_sweep(earlier).best
    assert best is not None
    distance = [abs(math.log10(each["optim.lr"] / best.parameters["optim.lr"])) for each in (warm, cold)]
    assert distance[0] < distance[1]

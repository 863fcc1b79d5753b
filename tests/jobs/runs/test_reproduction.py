"""A run once more, with its keys and its code, and what differs."""

import json
import os
from pathlib import Path

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_lines
from ropewalk.jobs.results.metrics import metric_line
from ropewalk.jobs.runs.models.reproduction import compare_runs, reproduce
from tests.jobs.shell import Shell, pretrain


def submitted(shell: Shell, *more: str) -> RunDir:
    """A run that waits."""
    return RunDir(shell.home / "runs" / shell("submit", *pretrain("--on", "slow", *more)).strip())


def with_losses(run: RunDir, *losses: float) -> RunDir:
    lines = [
        metric_line(1, step, {"train/loss": loss, "train/tokens_per_second": os.urandom(1)[0], "sentiment": 1.0})
        for step, loss in enumerate(losses)
    ]
    append_lines(run.metrics, lines)
    return run


def test_keys_and_code_are_those_of_the_run(shell: Shell) -> None:
    run = submitted(shell, "optim.lr=0.25", "name=first")
    again = reproduce(run, ["optim.weight_decay=0.5"])
    assert again.record["reproduces"] == run.id
    assert again.id.startswith("first-again-")
    differing = [key for key, value in run.record["config"].items() if again.record["config"][key] != value]
    assert differing == ["name", "optim"]
    assert again.record["config"]["optim"] == {**run.record["config"]["optim"], "weight_decay": 0.5}
    assert again.record["code"] == run.record["code"]
    assert again.attempts() == [1]


def test_circumstances_and_metrics_that_differ_are_named(shell: Shell) -> None:
    run = with_losses(submitted(shell), 4.0, 3.0, 2.0)
    same = with_losses(reproduce(run), 4.0, 3.0, 2.0)
    report = compare_runs(run, same)
    assert (report.differences, report.identical) == ([], True)
    assert [figure.metric for figure in report.figures] == ["sentiment", "train/loss"], "speeds are not compared"
    other = with_losses(reproduce(run, ["optim.lr=0.5", "resources.nodes=2"]), 4.0, 2.5, 2.0)
    raw = other.path / "run.yaml"
    raw.write_text(raw.read_text().replace("  torch: ", "  torch: 9."))
    data = Path(run.record["config"]["data"]) / "manifest.json"
    os.utime(data, (2e9, 2e9))
    answer = json.loads(shell("repro", run.id, "--with", other.id, "--json"))
    assert [each["what"] for each in answer["differences"]] == ["torch", "resources.nodes", "optim", f"data {data.parent}"]
    assert answer["identical"] is False
    assert answer["not_compared"] == []
    figure = answer["figures"][0]
    assert (figure["metric"], figure["first"], figure["before"], figure["now"]) == ("train/loss", 1, 3.0, 2.5)
    assert figure["largest"] == pytest.approx(0.5 / 3)
    text = shell("repro", run.id, "--with", other.id)
    assert "train/loss: differs from step 1 on (3.0 before, 2.5 now), at most by 16.7%" in text
    assert "bit for bit" in shell("repro", run.id, "--with", same.id)


def test_a_masked_value_is_asked_for(shell: Shell) -> None:
    run = submitted(shell)
    run.record = {**run.record, "config": {**run.record["config"], "data": "s3://***@bucket/data"}}
    with pytest.raises(ConfigError, match=r"data: its value was a secret and is not in run\.yaml; add data=VALUE"):
        reproduce(run)

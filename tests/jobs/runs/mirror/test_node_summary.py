"""Curves of many nodes in W&B: minimum, mean and maximum over the nodes, and the outliers."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import append_lines
from ropewalk.jobs.results.metrics import metric_line
from ropewalk.jobs.runs.mirror import node_summary
from ropewalk.jobs.runs.mirror.feed import Feed, Kind
from ropewalk.jobs.runs.mirror.wandb_run import wandb_values

MANY = 1250


def make_run(root: Path, nodes: int) -> RunDir:
    run = RunDir.create("large", {"job": "pretrain", "config": {}, "resources": {"nodes": nodes}}, root)
    run.begin_attempt()
    run.wandb.mkdir()
    return run


def write_samples(run: RunDir, nodes: int, times: range, **odd: float) -> None:
    """Append a sample of each node for each time; `odd`: GPU load of single nodes, as node_7=3.0."""
    for node in range(nodes):
        load = odd.get(f"node_{node}", 90.0 + node % 3)
        lines = [{"time": float(time), "node": node, "cpu_percent": 10.0, "gpu0_percent": load} for time in times]
        append_lines(run.attempt_dir(1) / f"nodes/node-{node}.jsonl", lines)


def sent(feed: Feed, **options: bool) -> list[dict[str, Any]]:
    return [wandb_values(line) for line in feed.look(**options) if line.kind in (Kind.NODE, Kind.NODES)]


def test_a_thousand_nodes_are_one_line_with_the_outliers(tmp_path: Path) -> None:
    run = make_run(tmp_path, MANY)
    write_samples(run, MANY, range(1000, 1060, 20), node_7=3.0, node_1100=50.0)
    (values,) = sent(Feed(run, run.wandb / "online.jsonl"))
    mean = (sum(90.0 + node % 3 for node in range(MANY)) - 91.0 - 92.0 + 53.0) / MANY
    assert values == {
        "system/nodes": MANY,
        "system/cpu_percent/min": 10.0,
        "system/cpu_percent/mean": 10.0,
        "system/cpu_percent/max": 10.0,
        "system/gpu0_percent/min": 3.0,
        "system/gpu0_percent/mean": pytest.approx(mean, abs=1e-3),
        "system/gpu0_percent/max": 92.0,
        "system/node-7/gpu0_percent": 3.0,
        "system/node-1100/gpu0_percent": 50.0,
        "system/time": 1040.0,
        "_timestamp": 1040.0,
    }


def test_few_nodes_keep_their_own_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path, 8)
    write_samples(run, 8, range(1000, 1010, 5))
    lines = sent(Feed(run, run.wandb / "online.jsonl"))
    assert len(lines) == 16
    assert {"system/node-7/cpu_percent": 10.0}.items() <= lines[-1].items()
    assert not list(run.wandb.glob("online-nodes*"))


def test_each_sample_is_summarized_once_and_lines_keep_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, 9)
    write_samples(run, 9, range(0, 600, 5))  # ten minutes before the mirror starts
    feed = Feed(run, run.wandb / "online.jsonl")
    lines = feed.look()
    assert [line.values["time"] for line in lines] == [*range(55, 535, 60), 595]
    write_samples(run, 9, range(600, 630, 5))
    append_lines(run.metrics, [metric_line(1, 1, {"train/loss": 1.0})])
    assert [line.kind for line in feed.look()] == [Kind.METRICS], "a window has not passed"
    again = Feed(run, run.wandb / "online.jsonl")  # another process
    assert list(again.again(0))[: len(lines)] == lines
    (line,) = again.look(last=True)
    assert (line.number, line.values["time"], line.values["nodes"]) == (len(lines) + 1, 625.0, 9)
    assert again.look(last=True) == []
    monkeypatch.setattr(node_summary, "WINDOW_SECONDS", 0.0)
    write_samples(run, 9, range(630, 640, 5))
    assert Feed(run, run.wandb / "online.jsonl").look()


def test_normal_spread_has_no_outliers() -> None:
    samples = [{"time": 1.0, "node": node, "load": float(node)} for node in range(100)]
    assert node_summary.summarize(samples)["outliers"] == {}
    far = [*samples, *({"time": 1.0, "node": 100 + extra, "load": 1e3 + extra} for extra in range(5))]
    assert set(node_summary.summarize(far)["outliers"]) == {"102", "103", "104"}, "the farthest three"

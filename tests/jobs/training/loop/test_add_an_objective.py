"""The section "Add an objective" of jobs/training/README.md, executed as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import launch, losses, pretrain_config

README = Path(__file__).resolve().parents[4] / "jobs/training/README.md"


def main(context: JobContext) -> dict[str, object]:
    """The entry of the README's job, in a rank."""
    section = README.read_text().partition("## Add an objective")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None, "the section has lost its program"
    names: dict[str, Any] = {}
    exec(code[1], names)
    result: dict[str, object] = names["main"](context)
    return result


def test_the_objective_of_the_readme_trains(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    config = pretrain_config(data, steps=4, batch={"global_batch": 7, "micro_batch": 1})
    entry = f"{__name__}:main"
    runs = [RunDir.create("test", {"job": "z-loss", "entry": entry, "config": config}, tmp_path) for _ in range(2)]
    left, three = (launch(run, ranks) for run, ranks in zip(runs, (1, 3), strict=True))
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-6)
    for name in ("train/log_z", "validation/log_z"):
        first, other = ([line[name] for line in run.read_metrics() if name in line] for run in runs)
        assert first
        assert first == pytest.approx(other, rel=1e-5)
    assert left["validation/log_z"] == pytest.approx(three["validation/log_z"], rel=1e-5)
    plain = RunDir.create("test", {"entry": "ropewalk.jobs.training.pretrain.job:main", "config": config}, tmp_path)
    launch(plain, 1)
    assert losses(runs[0])[1] > losses(plain)[1]

"""Runs of a cluster with `runs:` of its own are named as those of this machine are."""

import json
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.runs.models.find_model import find_checkpoint
from ropewalk.jobs.serving.feedback.review.serve import open_review
from tests.jobs.evaluation.evaluate.test_compare import evaluation
from tests.jobs.models.registry.registered import judged, trained
from tests.jobs.shell import Shell


@pytest.fixture
def big(shell: Shell) -> Path:
    """The runs of a second cluster, which this machine sees."""
    file = shell.home / "clusters.yaml"
    profiles = yaml.safe_load(file.read_text())
    profiles["big"] = {**profiles["slow"], "runs": str(shell.home / "big")}
    file.write_text(yaml.safe_dump(profiles))
    (shell.home / "big").mkdir()
    return shell.home / "big"


def path_of(ref: str, root: Path | None = None) -> Path:
    path = find_checkpoint(ref, root).source
    return path.path if isinstance(path, RunDir) else path


def test_a_model_may_lie_under_any_root(shell: Shell, big: Path) -> None:
    model = trained(big)
    for word in (model.id, model.id[:-3], "latest", f"{model.id}@4"):
        assert path_of(word) == model.path
    run = shell("submit", "evaluate", f"model={model.id[:-3]}", "data=data", "--on", "big", "--after", model.id).strip()
    assert RunDir(big / run).record["config"]["model"] == model.id


def test_a_job_finds_the_model_beside_it_first_and_then_under_other_roots(shell: Shell, big: Path) -> None:
    model = trained(big)
    assert find_checkpoint(model.id, big).ref == model.id
    assert path_of(model.id, shell.home / "runs") == model.path
    with pytest.raises(ConfigError, match="no run 'model-that-is-not'"):
        find_checkpoint("model-that-is-not", shell.home / "runs")


def test_promote_and_compare_over_roots(shell: Shell, big: Path) -> None:
    model = trained(big)
    item, two = evaluation(big, [1.0, 0.0] * 8, name="one"), evaluation(shell.home / "runs", [0.0, 1.0] * 8, name="two")
    assert json.loads(shell("compare", item.id, two.id, "--json"))["comparisons"]
    gate = judged(big, model.id)
    assert [entry["run"] for entry in promote(model.id).gates] == [gate.id]
    assert find_checkpoint("production").ref == f"{model.id}@4"


def test_feedback_and_review_over_roots(shell: Shell, big: Path) -> None:
    run = RunDir.create("serve", {"job": "serve", "cluster": "big", "config": {"capture": None}}, big)
    assert json.loads(shell("feedback", run.id, "--json"))["run"] == run.id
    with (
        pytest.raises(ConfigError, match=f"{run.id} has captured no exchanges"),
        open_review(run.id, reviewer="me", ask_at=None, sample=False, out=None, port=0),
    ):
        pass

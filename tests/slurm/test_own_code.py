"""Modules of the user's own on a real Slurm cluster: jobs, and Ray workers on several nodes, import them as submitted."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests.fakes.documents import some_documents, write_lines
from tests.readme import Section, ropewalk
from tests.slurm.toy import finish, said


@pytest.mark.soak(
    "a job, and a Ray; make test runs both on this machine in test_add_a_job.py, and a user's project"
    " on Slurm in test_a_run_from_submission_to_its_end"
)
@pytest.mark.parametrize(
    ("section", "command"),
    [
        (("jobs/README.md", "Add a job"), ("greet:SPEC", "recipient=world")),
        (("datapipe/README.md", "Add a filter"), ("preprocess", "-c", "preprocess.yaml", "resources.nodes=2", "actors=2")),
    ],
)
def test_they_reach_every_process(
    section: tuple[str, str], command: tuple[str, ...], slurm_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    write_lines(home / "docs/a.jsonl", [{"id": "loud", "text": "LOUD " * 60}, *some_documents(400, num_words=100)])
    Section(*section).write_files(home)
    (module,) = home.glob("*.py")
    module.write_text(module.read_text().replace("\nclass", "\nimport beside  # noqa: F401\n\n\nclass", 1))
    (home / "beside.py").write_text("")
    runs, clusters = tmp_path / "runs", tmp_path / "clusters.yaml"
    clusters.write_text(yaml.safe_dump({"lab": {"backend": "slurm", "runs": str(runs), "python": sys.executable}}))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(clusters))
    out, _ = ropewalk(home, "submit", *command, "--on", "lab", runs=runs)
    for path in home.glob("*.py"):
        path.write_text("raise SystemExit('written after the submission')\n")
    run = RunDir(runs / out.strip())
    outcome = finish(run)
    assert outcome.state is RunState.SUCCEEDED, said(run)
    results = json.dumps(outcome.results)
    assert "Hello, world!" in results or '"shouting:Shouting.capitals": 1' in results

"""Inputs of the hub on a real Slurm cluster: fetched on the login node, and read by nodes without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.lab.cluster import Lab
from tests.fakes.documents import some_documents, write_lines
from tests.fakes.hub import COMMIT, FakeHub, serving
from tests.readme import ropewalk
from tests.slurm.toy import finish, said


@pytest.mark.soak("make test runs test_a_model_and_conversations_of_the_hub_are_trained_without_a_network, on this machine")
def test_nodes_read_what_was_fetched_beforehand(slurm_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "docs.jsonl", some_documents(60, num_words=40))
    hub = FakeHub({"datasets/org/docs": {"data/train.jsonl": (tmp_path / "docs.jsonl").read_bytes()}})
    home, runs, clusters = tmp_path / "home", tmp_path / "runs", tmp_path / "clusters.yaml"
    home.mkdir()
    clusters.write_text(yaml.safe_dump({"lab": {"backend": "slurm", "runs": str(runs), "python": sys.executable}}))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(clusters))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    job = ("preprocess", "input=hf://datasets/org/docs", "output=out", "tokenizer.train=300", "--on", "lab")
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        # a fork, as the helper starts, has huggingface_hub imported with HF_HUB_OFFLINE
        command = [sys.executable, "-P", "-m", "ropewalk.jobs.cli", "fetch", *job]
        subprocess.run(command, env={**os.environ, "ROPEWALK_RUNS": str(runs), "PYTHONPATH": ""}, cwd=home, check=True)
    out, said_here = ropewalk(home, "submit", *job, runs=runs)
    assert f"using version {COMMIT[:12]}, which is here" in said_here
    run = RunDir(runs / out.split()[-1])
    assert run.record["config"]["input"] == [f"{runs}/.hub/data/org/docs@{COMMIT}"]
    assert finish(run).state is RunState.SUCCEEDED, said(run)
    assert run.results()["documents"] + run.results()["rejected"] == 60

"""The ray engine in pods: a Ray cluster over those of an Indexed Job, and the same data set as on this machine."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.preprocess.config import PreprocessConfig
from ropewalk.jobs.runs.submit.records import make_record
from tests.k8s.cluster import Namespace
from tests.k8s.toy import KubeToy
from tests.patience import Patience, until
from tests.slurm.toy import finish, said

Start = Callable[..., KubeToy]


@pytest.mark.soak("three Ray clusters; make test runs Ray on Slurm and on this machine")
@pytest.mark.slow
@pytest.mark.usefixtures("alone_with_ray")
def test_preprocess_gives_the_same_bytes_everywhere(start: Start, namespace: Namespace) -> None:
    """On this machine, on two pods, and on two pods of which Ray's head is lost half-way."""
    texts = namespace.runs / "texts.jsonl"
    lines = (json.dumps({"id": str(i), "text": f"rope {i} is laid from strands " * 20}) for i in range(300))
    texts.write_text("".join(f"{line}\n" for line in lines))
    run, resources = make_run(namespace, texts, "local", nodes=1)
    LocalBackend(Profile(name="local", backend="local")).submit(run, resources)
    finish_well(run, attempts=1, nodes=1)
    run = submit(namespace, start, texts, "pods")
    finish_well(run, attempts=1, nodes=2)
    run = submit(namespace, start, texts, "disturbed")
    until(run.progress.exists, Patience.RUN)
    namespace.kubectl("delete", "pod", str(run.attempt_details(1)["carrier"]), "--wait=false")
    finish_well(run, attempts=2, nodes=2)
    results = [digests(namespace.runs / f"data-{on}") for on in ("local", "pods", "disturbed")]
    assert results == [results[0]] * 3
    assert any(name.startswith("shards/") for name in results[0])


def submit(namespace: Namespace, start: Start, texts: Path, on: str) -> RunDir:
    run, resources = make_run(namespace, texts, on, nodes=2)
    # pods see the volume under the path that this machine sees it under
    toy = start(submit=False, profile={"claim_path": str(namespace.runs)})
    toy.backend.submit(run, resources)
    return run


def finish_well(run: RunDir, attempts: int, nodes: int) -> None:
    outcome = finish(run, Patience.CLUSTER)
    assert outcome.state is RunState.SUCCEEDED, said(run)
    assert run.attempts()[-1] == attempts, said(run)
    assert len(read_lines(run.attempt_dir(attempts) / AGENTS)) == nodes


def make_run(namespace: Namespace, texts: Path, on: str, nodes: int) -> tuple[RunDir, Resources]:
    """A run that writes its data set to data-ON."""
    output = namespace.runs / f"data-{on}"
    output.mkdir()
    output.chmod(0o777)
    resources = Resources.model_validate({"nodes": nodes, "cpus": 1})
    values = {"input": [str(texts)], "output": str(output), "tokenizer": {"train": 300}, "resources": resources}
    config = PreprocessConfig.model_validate(values)
    record = make_record("preprocess", config, on, {"sidecars": [], "code": namespace.code})
    return RunDir.create("preprocess", record, namespace.runs), resources


def digests(folder: Path) -> dict[str, str]:
    """Digests of all data files."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in {".arrow", ".json", ".jsonl"}]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "manifest.json" and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }

"""The ray engine inside an Indexed Job: a Ray cluster over its pods, and the same data set as on this machine."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.attempt import AGENTS
from cluster.backend import Profile
from cluster.config import Resources
from cluster.files import read_lines
from cluster.local import LocalBackend
from cluster.run_dir import RunDir
from cluster.spec import RunState
from jobs.preprocess import PreprocessConfig
from jobs.submission import make_record
from tests.k8s.cluster import Namespace
from tests.k8s.toy import KubeToy
from tests.slurm.toy import finish, said

Start = Callable[..., KubeToy]


@pytest.mark.slow
@pytest.mark.usefixtures("alone_with_ray")
def test_preprocess_on_two_pods_gives_the_same_bytes(start: Start, namespace: Namespace) -> None:
    texts = namespace.runs / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"id": str(i), "text": f"rope {i} is laid from strands " * 20}) + "\n" for i in range(300))
    )
    ours = preprocess(namespace, start, texts, "k8s", nodes=2)
    local = preprocess(namespace, start, texts, "local", nodes=1)
    assert digests(ours) == digests(local)
    assert any(name.startswith("shards/") for name in digests(ours))


def preprocess(namespace: Namespace, start: Start, texts: Path, on: str, nodes: int) -> Path:
    output = namespace.runs / f"data-{on}"
    output.mkdir()
    output.chmod(0o777)
    resources = Resources.model_validate({"nodes": nodes, "cpus": 1})
    values = {"input": [str(texts)], "output": str(output), "tokenizer": {"train": 300}, "resources": resources}
    config = PreprocessConfig.model_validate(values)
    record = make_record("preprocess", config, on, {"sidecars": []})
    run = RunDir.create("preprocess", record, namespace.runs)
    if on == "local":
        LocalBackend(Profile(name="local", backend="local")).submit(run, resources)
    else:
        # pods see the volume under the path that this machine sees it under
        toy = start(submit=False, profile={"claim_path": str(namespace.runs), "ray": "indexed"})
        toy.backend.submit(run, resources)
    outcome = finish(run, 240)
    assert outcome.state is RunState.SUCCEEDED, said(run)
    assert len(read_lines(run.attempt_dir(1) / AGENTS)) == nodes
    return output


def digests(folder: Path) -> dict[str, str]:
    """Of everything that is data."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in {".arrow", ".json", ".jsonl"}]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "manifest.json" and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }

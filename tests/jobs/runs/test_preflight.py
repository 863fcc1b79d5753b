"""Inputs that a job names as its cluster sees them, while this machine sees them elsewhere, or not at all."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.backends.profiles import load_profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.inputs.files import list_inputs
from ropewalk.datapipe.passes.plan import begin_or_resume, deciding_keys
from ropewalk.datapipe.passes.task import WORK
from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.preprocess.config import PreprocessConfig
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.submit.dry_run import render
from ropewalk.jobs.runs.submit.submit import configure, submit
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.k8s.backend import K8sBackend
from ropewalk.sharding.config import ParallelConfig, check_mesh
from tests.jobs.corpus import make_dataset

MOUNT = {"claim": "corpora", "path": "/corpora"}


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mount point of a claim that holds a data set."""
    folder = tmp_path_factory.mktemp("mnt")
    make_dataset(folder / "d", num_documents=8)
    (folder / "raw").mkdir()
    (folder / "raw/a.jsonl").write_text('{"text": "x"}\n')
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text("{}")
    return folder


def view(runs: Path | None) -> Callable[[str], Path | None]:
    options = {"claim_path": "/runs", "runs": str(runs) if runs else None, "mounts": [MOUNT]}
    return K8sBackend(Profile(name="team", backend="k8s", options=options)).path_here


def pretrain(data: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"data": data, "steps": 1, "seq_len": 64})


def preprocess(inputs: list[str], output: str) -> PreprocessConfig:
    return PreprocessConfig.model_validate({"input": inputs, "output": output, "tokenizer": {"path": "/runs/model"}})


def test_paths_inside_a_claim_are_looked_for_where_the_profile_says(mounted: Path) -> None:
    here = view(mounted)
    pretrain("/runs/d").preflight(here)
    pretrain(str(mounted / "d")).preflight(here)
    pretrain([{"path": "/runs/d"}, {"path": "/corpora/books"}]).preflight(here)  # which only pods see
    EvaluateConfig.model_validate({"model": "/runs/model", "data": "/runs/d"}).preflight(here)
    preprocess(["/runs/raw/*.jsonl", "/corpora/x"], "/runs/out").preflight(here)
    with pytest.raises(ConfigError, match=rf"data: /runs/e \(seen here as {mounted}/e\) does not exist"):
        pretrain("/runs/e").preflight(here)
    with pytest.raises(ConfigError, match=r"model: .*/nothing' is neither"):
        EvaluateConfig.model_validate({"model": "/runs/nothing", "data": "/runs/d"}).preflight(here)
    with pytest.raises(DataError, match=r"input '/runs/raw/\*.txt': matches no file"):
        preprocess(["/runs/raw/*.txt"], "/runs/out").preflight(here)
    with pytest.raises(ConfigError, match="output: '/runs/raw/out' is inside the input '/runs/raw'"):
        preprocess(["/runs/raw"], "/runs/raw/out").preflight(here)


def test_what_this_machine_does_not_see_is_left_to_the_run(mounted: Path) -> None:
    pretrain("/runs/d").preflight(view(None))
    with pytest.raises(ConfigError, match="data: /elsewhere/d does not exist"):
        pretrain("/elsewhere/d").preflight(view(mounted))
    with pytest.raises(ConfigError, match="data: /runs/d does not exist"):
        pretrain("/runs/d").preflight(LocalBackend(Profile(name="local", backend="local")).path_here)


@pytest.mark.parametrize("job", ["pretrain", "sweep"])
def test_a_submission_takes_a_path_of_the_claim(mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    profiles = {"team": {"backend": "k8s", "claim_path": "/runs", "runs": str(mounted), "kubeconfig": str(tmp_path / "none")}}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(profiles))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    arguments = ["data=/runs/d", "steps=2", "seq_len=64"]
    if job == "sweep":
        arguments = [
            "job=pretrain",
            "base={data: /runs/d, steps: 2, seq_len: 64, validation: {every_steps: 1}}",
            "space={optim.lr: {uniform: [0.1, 0.2]}}",
            "metric=validation/loss",
            "trials=2",
            "scheduler=fifo",
            "search=random",
        ]
    assert "kind: Job" in render(job, [configure(job, None, arguments)], "team")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs of a cluster to which no kubeconfig leads."""
    profiles = {"team": {"backend": "k8s", "runs": str(tmp_path / "runs"), "kubeconfig": str(tmp_path / "none")}}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(profiles))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_submission_without_a_way_to_the_cluster_leaves_no_run(nowhere: Path) -> None:
    config = configure("command", None, ["command=[ls]", "launch=once"])
    assert "kind: Job" in render("command", [config], "team")
    with pytest.raises(ConfigError, match="no such kubeconfig"):
        submit("command", config, "team")
    assert not nowhere.exists()


def test_a_run_that_was_never_submitted_is_cancelled_without_its_cluster(nowhere: Path) -> None:
    record = {"job": "command", "cluster": "team", "config": {}, "resources": {"nodes": 1}}
    run = RunDir.create("x", {**record, "created": time.time() - 1000}, nowhere)
    assert [item.message for item in cancel_runs([run.id])] == [f"{run.id} is cancelled: never submitted"]
    assert run.cancel_requested


@pytest.mark.parametrize("more", [{"created": None}, {"created": 1.0, "parent": "sweep-1"}])
def test_a_run_in_doubt_is_not_reported_as_never_submitted(nowhere: Path, more: dict[str, Any]) -> None:
    """Whoever submits a thousand runs writes all down first; and a copy of another run's child may not have all its files."""
    record = {"job": "command", "cluster": "team", "config": {}, "resources": {"nodes": 1}}
    run = RunDir.create("x", {**record, **more, "created": more["created"] or time.time()}, nowhere)
    with pytest.raises(ConfigError, match="no such kubeconfig"):
        K8sBackend(load_profile("team")).cancel_many([run])
    assert run.attempts() == []


@pytest.mark.parametrize("ask", [submit, lambda job, config, name: render(job, [config], name)])
def test_a_pipeline_of_which_no_step_could_wait_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str, Any, str], Any]
) -> None:
    """The first step waits for nothing and would run."""
    profiles = {"team": {"backend": "k8s", "runs": str(tmp_path / "runs"), "kubeconfig": str(tmp_path / "none")}}
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(profiles))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    step = {"job": "command", "config": {"command": "true", "launch": "once"}}
    config = PipelineConfig.model_validate({"steps": {"first": step, "second": {**step, "needs": ["first"]}}})
    with pytest.raises(ConfigError, match="needs a service account"):
        ask("pipeline", config, "team")
    assert not (tmp_path / "runs").exists()


def test_a_model_and_its_data_are_compared_where_both_are_seen(mounted: Path, tmp_path: Path) -> None:
    here = view(mounted)
    sizes = {"model_type": "llama", "vocab_size": 257, "max_position_embeddings": 64}
    (mounted / "fitting").mkdir()
    (mounted / "fitting/config.json").write_text(json.dumps(sizes))

    def train(model: dict[str, Any], seq_len: int = 32) -> PretrainConfig:
        return PretrainConfig.model_validate({"data": "/runs/d", "steps": 1, "seq_len": seq_len, "model": model})

    train({"path": "/runs/fitting"}).preflight(here)
    train({"path": "/runs/nowhere"}).preflight(view(None))
    train({"config": sizes}).preflight(here)
    train({"path": "/runs/model"}).preflight(here)  # its config.json has no sizes, which transformers knows
    with pytest.raises(ConfigError, match=r"model.path: /runs/raw has no config.json"):
        train({"path": "/runs/raw"}).preflight(here)
    with pytest.raises(ConfigError, match="vocabulary has 100 tokens, the data set's tokenizer 257"):
        train({"config": {**sizes, "vocab_size": 100}}).preflight(here)
    with pytest.raises(ConfigError, match="seq_len: 128 exceeds the model's 64 positions"):
        train({"path": "/runs/fitting"}, 128).preflight(here)
    with pytest.raises(ConfigError, match=r"no sequence of 4,000 tokens fits in /runs/d, which has 1,124 training tokens"):
        train({"preset": "tiny"}, 4000).preflight(here)


def test_a_manifest_that_changed_is_read_again(tmp_path: Path) -> None:
    make_dataset(tmp_path / "d", num_documents=8)
    config = PretrainConfig.model_validate({"data": str(tmp_path / "d"), "steps": 1, "seq_len": 64})
    config.preflight()
    (tmp_path / "d/manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json"):
        config.preflight()


def test_an_output_belongs_to_its_settings(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    values: dict[str, Any] = {"input": str(tmp_path / "a.jsonl"), "output": str(tmp_path / "out"), "tokenizer": {"train": 300}}
    config = PreprocessConfig.model_validate(values)
    config.preflight()
    work = StoragePath(tmp_path / "out").child(WORK)
    begin_or_resume(StoragePath(tmp_path / "out"), work, deciding_keys(config, config.seed), list_inputs(config.input))
    config.preflight()  # it would be resumed
    other = PreprocessConfig.model_validate({**values, "validation_fraction": 0.2})
    message = "holds an unfinished data set made with other settings: validation_fraction was 0.01, is 0.2; restore"
    with pytest.raises(DataError, match=message):
        other.preflight()
    steps = {"text": {"job": "preprocess", "config": {**values, "seed": 1}}}
    with pytest.raises(DataError, match="seed was 0, is 1"):
        PipelineConfig.model_validate({"steps": steps}).preflight()


def test_ranks_of_some_number_of_nodes_form_the_mesh() -> None:
    check_mesh(ParallelConfig(replicate=2), Resources.model_validate({"nodes": "1..4", "ranks_per_node": 4}))
    check_mesh(ParallelConfig(replicate=2), Resources.model_validate({"nodes": 2}))
    check_mesh(ParallelConfig(replicate=2), Resources.model_validate({"nodes": "1..3"}))
    check_mesh(ParallelConfig(replicate="auto"), Resources.model_validate({"nodes": "1..3"}))
    check_mesh(ParallelConfig(replicate="auto", shard_nodes=2), Resources.model_validate({"nodes": "3..4"}))
    with pytest.raises(
        ConfigError, match=r"3 ranks cannot be divided into 2 copies of the model \(resources.nodes=3 with 1 rank"
    ):
        check_mesh(ParallelConfig(replicate=2), Resources.model_validate({"nodes": 3}))
    with pytest.raises(ConfigError, match=r"4 ranks cannot be divided into 8 copies"):
        check_mesh(ParallelConfig(replicate=8), Resources.model_validate({"nodes": "1..4"}))
    with pytest.raises(ConfigError, match=r"3 nodes \(resources.nodes=3\) cannot be divided into copies .* on 2 nodes each"):
        check_mesh(ParallelConfig(replicate="auto", shard_nodes=2), Resources.model_validate({"nodes": 3}))
    with pytest.raises(ConfigError, match=r"set parallel.shard_nodes to a divisor"):
        check_mesh(ParallelConfig(replicate="auto", shard_nodes=4), Resources.model_validate({"nodes": "1..3"}))

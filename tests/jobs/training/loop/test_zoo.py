"""Architectures of transformers through a whole run: trained on two ranks, on one, exported, and opened by transformers alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.training.loop.architecture.model_config import model_config
from ropewalk.jobs.training.loop.architecture.model_record import checkpoint_folder
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.jobs.training.loop.weights.export import export
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from ropewalk.sharding.checkpoints.manifest import dump_manifest, read_manifest
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import launch, log_of, losses, make_run, pretrain_config, start
from tests.jobs.training.loop.zoo import ZOO

QUICK = ("mamba2", "mixtral")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_documents=40)


def trained(data: Path, root: Path, kind: str) -> RunDir:
    """A run that was stopped on two ranks after its first step, and finished on one."""
    model = {"config": {"model_type": kind, **ZOO[kind]}}
    sizes = {"seq_len": 16, "batch": {"global_batch": 4, "micro_batch": 2}, "steps": 3}
    run = make_run(root, pretrain_config(data, model=model, **sizes))
    (run.path / "stop-here").touch()
    assert start(run, 2).wait() == [85, 85], log_of(run)
    (run.path / "stop-here").unlink()
    launch(run, 1)
    assert sorted(losses(run)) == [1, 2, 3]
    return run


@pytest.fixture(scope="module")
def mamba(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of mamba2, whose configuration has an infinity."""
    return trained(data, tmp_path_factory.mktemp("mamba"), "mamba2")


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.soak("twenty architectures; make test runs two"))
        for kind in ZOO
    ],
)
def test_a_model_leaves_as_it_was_trained(data: Path, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue("mamba") if kind == "mamba2" else trained(data, tmp_path, kind)
    text = (run.checkpoints / "step-00000003/manifest.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # strict JSON has no Infinity
    ours, _ = load_model(run)
    plain = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "model"), dtype=torch.float32).eval()
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(tokens).logits, plain(tokens).logits, rtol=0, atol=1e-6)
        held_out = torch.from_numpy(TokenLoader([Source(str(data))], seq_len=16, seed=0, split="validation").in_order(0, 5))
        loss = cross_entropy(plain(held_out[:, :-1]).logits.flatten(0, 1), held_out[:, 1:].flatten()).item()
    assert loss == pytest.approx(run.results()["validation/loss"], rel=1e-6), "the ranks trained this very model"


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="models of type 't5' are not causal language models"):
        model_config(ModelConfig(config={"model_type": "t5"}), vocabulary=257, end_of_document=256, seq_len=16)


def test_an_older_checkpoint_without_infinities_is_resumed_and_exported(mamba: RunDir, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(mamba.path, tmp_path / mamba.id))
    storage = checkpoint_folder(run)
    for folder in [storage.child(path.name) for path in sorted(run.checkpoints.glob("step-*"))]:
        manifest = read_manifest(folder)
        assert manifest.identity["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
        old = {**manifest.identity, "time_step_limit": [0.0, None]}
        folder.write("manifest.json", dump_manifest(manifest.model_copy(update={"identity": old, "config_hash": "xxh3:0"})))
    export(run, tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text()).get("time_step_limit", [0.0, {"__float__": "Infinity"}])[1]
    assert launch(run, 1)["step"] == 3
    wanted = {**run.record["config"]["model"]["config"], "time_step_limit": [0.0, 5.0]}
    other = make_run(tmp_path, {**run.record["config"], "model": {"config": wanted}})
    run.checkpoints.rename(other.checkpoints)
    assert start(other, 1).wait() == [42]
    assert "time_step_limit" in log_of(other)

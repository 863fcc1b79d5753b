"""Layers that share weights: the model with them, sharded and saved, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.architecture.bare_model import bare_model, skeleton
from ropewalk.jobs.training.loop.architecture.model_config import config_from_fingerprint, model_fingerprint
from ropewalk.jobs.training.loop.architecture.model_record import Weights
from ropewalk.jobs.training.loop.architecture.sharing import plain_config, set_groups, shared_groups
from ropewalk.jobs.training.loop.weights.export import export
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_first_weights, load_model, load_tensors
from ropewalk.jobs.training.loop.weights.run_weights import UnsharedWeights
from ropewalk.jobs.training.loop.weights.weight_reader import LoadedWeights
from ropewalk.jobs.training.loop.weights.write_weights import write_model
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY, launch, losses, make_run, pretrain_config, weights
from tests.jobs.training.pruning.test_scores import batches, make_model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=torch.cat(batches()), use_cache=False).logits
    return result


def names(model: Any) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("values", ["first", "mean"])
def test_there_and_back(values: str, tmp_path: Path) -> None:
    model, plain = make_model(num_hidden_layers=5), make_model(num_hidden_layers=5)
    model.save_pretrained(tmp_path / "plain")
    set_groups(model.config, 2, values)
    assert shared_groups(model.config) == [[0, 1], [2, 3, 4]]
    run = RunDir.create("run", {"config": {}}, tmp_path)
    shared = load_first_weights(model.config, Weights(path=str(tmp_path / "plain")), run).eval()
    assert names(shared) == {name for name in names(plain) if not any(f"layers.{n}." in name for n in (1, 3, 4))}
    weight, before = shared.model.layers[3].mlp.up_proj.weight, [layer.mlp.up_proj.weight for layer in plain.model.layers]
    assert weight is shared.model.layers[2].mlp.up_proj.weight
    wanted = before[2] if values == "first" else torch.stack(before[2:]).mean(0)
    torch.testing.assert_close(weight, wanted)
    reader = UnsharedWeights(LoadedWeights(lambda: shared), shared_groups(shared.config))
    again = load_tensors(skeleton(plain_config(shared.config)), reader).eval()
    assert names(again) == names(plain)
    assert not shared_groups(again.config)
    assert torch.equal(logits(again), logits(shared))
    (tmp_path / "again").mkdir()
    write_model(skeleton(plain_config(shared.config)), reader, tmp_path / "again", torch.float32)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "again")), logits(shared))


def test_the_configuration_says_it_all() -> None:
    config = make_model(num_hidden_layers=4).config
    set_groups(config, 2)
    again = config_from_fingerprint(model_fingerprint(config))
    assert shared_groups(again) == [[0, 1], [2, 3]]
    assert len(names(bare_model(again, "causal_lm"))) < len(names(make_model(num_hidden_layers=4)))


def test_more_groups_than_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"share\.groups: 4 groups of 3 layers are not possible; choose at most 3"):
        set_groups(make_model().config, 4)


@pytest.mark.soak(
    "three ranks; test_the_loss_of_a_run_is_the_formula_at_any_number_of_ranks trains shared layers, test_there_and_back"
    " stores them"
)
def test_they_train_sharded_and_leave_as_a_plain_model(tmp_path: Path) -> None:
    """One rank and two learn the same; a checkpoint holds a group's weights once; an export has them in each layer."""
    data = make_dataset(tmp_path / "data")
    sizes = {**TINY, "num_hidden_layers": 4, "layer_sharing": {"groups": [[0, 2], [1, 3]], "values": "first"}}
    runs = [make_run(tmp_path, pretrain_config(data, model={"config": sizes}, steps=4)) for _ in range(2)]
    results = [launch(run, ranks) for run, ranks in zip(runs, (1, 2), strict=True)]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-6)
    remaining = {name.split("layers.")[1][0] for name in weights(runs[1]) if "layers." in name}
    assert remaining == {"0", "1"}
    model, _ = load_model(runs[1])
    assert not shared_groups(model.config)
    opened = AutoModelForCausalLM.from_pretrained(export(runs[1], tmp_path / "model"))
    layers = opened.model.layers
    assert torch.equal(layers[0].mlp.up_proj.weight, layers[2].mlp.up_proj.weight)
    assert not torch.equal(layers[0].mlp.up_proj.weight, layers[1].mlp.up_proj.weight)
    assert torch.equal(logits(opened), logits(model))
    assert results[1]["validation/loss"] == pytest.approx(results[0]["validation/loss"], rel=1e-6)

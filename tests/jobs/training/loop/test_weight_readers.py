"""Weights read in parts: equal to what transformers and peft compute with the whole model in memory."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.architecture.model_record import Weights
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.weights.adapter_weights import AdaptedWeights, MergedWeights
from ropewalk.jobs.training.loop.weights.directory_weights import DirectoryWeights
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_first_weights, load_tensors
from ropewalk.jobs.training.loop.weights.lora import lora_adapter, merge_adapter
from ropewalk.jobs.training.loop.weights.run_weights import first_weights
from ropewalk.jobs.training.loop.weights.weight_reader import FirstWeights, LoadedWeights
from ropewalk.jobs.training.loop.weights.write_weights import write_model
from tests.jobs.training.loop.zoo import ZOO

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft about gpt2

TOKENS = torch.arange(20)[None]


def config_of(kind: str, **keys: Any) -> Any:
    return AutoConfig.for_model(kind, **{"vocab_size": 64, **ZOO[kind], **keys})


def model_of(kind: str, **keys: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(kind, **keys), dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "mixtral", "bloom", "phi3"])
def test_a_directory_is_read_and_written_in_parts(kind: str, tmp_path: Path) -> None:
    """The names of gpt_neox and mixtral are converted, and mixtral's experts are stacked."""
    full = model_of(kind)
    full.save_pretrained(tmp_path / "saved")
    reader = DirectoryWeights(skeleton(full.config), tmp_path / "saved")
    for name, parameter in full.named_parameters():
        third = len(parameter) // 3
        assert torch.equal(reader.read(name), parameter), name
        assert torch.equal(reader.read(name, third, 2 * third), parameter[third : 2 * third]), name
        assert reader.read(name, 1, 1).shape == parameter[1:1].shape, name
    (tmp_path / "written").mkdir()
    write_model(skeleton(full.config), reader, tmp_path / "written", torch.float32)
    saved, written = (load_file(tmp_path / folder / "model.safetensors") for folder in ("saved", "written"))
    assert saved.keys() == written.keys()
    assert all(torch.equal(saved[name], written[name]) for name in saved)
    files = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("saved", "written")]
    assert files[0] == files[1]
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "written", dtype=torch.float32).eval()
    assert torch.equal(opened(TOKENS).logits, full(TOKENS).logits)
    assert torch.equal(load_tensors(skeleton(full.config), reader)(TOKENS).logits, full(TOKENS).logits)


def test_weights_in_bf16_and_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ropewalk.jobs.training.loop.weights.write_weights._MAX_FILE_SIZE", "10KB")
    full = model_of("llama", tie_word_embeddings=False)
    write_model(skeleton(full.config), LoadedWeights(lambda: full), tmp_path, torch.bfloat16)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert opened.dtype == torch.bfloat16
    for name, value in opened.state_dict().items():
        assert torch.equal(value, full.state_dict()[name].to(torch.bfloat16)), name


def test_the_head_alone_may_be_stored_of_tied_weights(tmp_path: Path) -> None:
    full = model_of("llama", tie_word_embeddings=True)
    full.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    reader = DirectoryWeights(skeleton(full.config), tmp_path)
    assert torch.equal(reader.read("model.embed_tokens.weight"), full.get_input_embeddings().weight)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("options", "tokens"), [({}, ()), ({"dora": True}, (3, 5)), ({"rslora": True}, ())], ids=str)
def test_an_adapter_is_pefts(kind: str, options: dict[str, Any], tokens: tuple[int, ...]) -> None:
    """First values are those in an unsharded model, and merged layers those that peft merges, whatever part is read."""
    config, full = LoraConfig(rank=4, **options), model_of(kind, tie_word_embeddings=kind == "gpt2")
    adapted = lora_adapter(config, 3, tokens)(copy.deepcopy(full))
    layers = lora_adapter(config, 3, tokens)(skeleton(full.config))
    first = AdaptedWeights(LoadedWeights(lambda: full), layers, 3)
    values = dict(adapted.named_parameters()) | {n: b for n, b in adapted.named_buffers() if "trainable_tokens" in n}
    for name, value in values.items():
        assert first.shape(name) == tuple(value.shape), name
        assert torch.equal(first.read(name), value), name
        assert torch.equal(first.read(name, 1, 2), value[1:2]), name
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "trainable_tokens_delta" in name:
                parameter.normal_()
    trained = copy.deepcopy(adapted)
    reader = MergedWeights(FirstWeights(LoadedWeights(lambda: trained), first), layers)
    for name, parameter in merge_adapter(adapted).named_parameters():
        assert torch.equal(reader.read(name), parameter), name
        assert torch.equal(reader.read(name, 1, 3), parameter[1:3]), name


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_get_the_statistics_of_the_others(tmp_path: Path, tied: bool) -> None:
    """Their rows are the mean of the others with a little noise, as transformers makes them, in whatever parts they are read."""
    full = model_of("llama", tie_word_embeddings=tied)
    full.save_pretrained(tmp_path / "model")
    run = RunDir.create("run", {"config": {"seed": 7}}, tmp_path)
    config = config_of("llama", vocab_size=70, tie_word_embeddings=tied)
    reader = first_weights(config, Weights(path=str(tmp_path / "model")), run)
    for name in ["model.embed_tokens.weight"] + ([] if tied else ["lm_head.weight"]):
        old, whole = full.get_parameter(name), reader.read(name)
        assert whole.shape == (70, 16)
        assert torch.equal(whole[:64], old)
        noise = (whole[64:] - old.mean(0)) / old.std(0)
        assert 0 < noise.std() < 1e-4
        assert torch.unique(noise, dim=0).shape == noise.shape
        assert torch.equal(torch.cat([reader.read(name, at, at + 5) for at in range(0, 70, 5)]), whole)
    assert load_first_weights(config, Weights(path=str(tmp_path / "model")), run).lm_head.weight.shape == (70, 16)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model_of("llama").save_pretrained(tmp_path / "model")
    run = RunDir.create("run", {"config": {}}, tmp_path)
    config = config_of("llama", intermediate_size=48)
    with pytest.raises(ConfigError, match=r"gate_proj.weight of .* has the shape \[32, 16\], and \[48, 16\] by"):
        first_weights(config, Weights(path=str(tmp_path / "model")), run)

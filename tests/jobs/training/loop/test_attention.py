"""Kernels of attention: refused before a run starts where they cannot train, and equal where a CPU can compute them."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.loop import attention
from ropewalk.jobs.training.loop.architecture.bare_model import bare_model
from ropewalk.jobs.training.loop.architecture.model_config import model_fingerprint
from ropewalk.jobs.training.loop.attention import kernel_problem, use_kernel
from ropewalk.jobs.training.loop.documents import known_documents
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from tests.jobs.launch import TINY


def test_kernels_without_their_hardware_or_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_problem("sdpa", gpus=0) is None
    assert kernel_problem("flex", gpus=1) is None
    assert "flash runs on GPUs only; set resources.gpus" in str(kernel_problem("flash", gpus=0))
    assert "flex computes no gradients on CPUs" in str(kernel_problem("flex", gpus=0))
    monkeypatch.setattr(attention, "find_spec", lambda _: None)
    assert "pip install kernels" in str(kernel_problem("flash", gpus=8))
    monkeypatch.setattr(attention, "find_spec", lambda name: name == "kernels" or None)
    assert kernel_problem("flash", gpus=8) is None


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"separate_documents": True}, "flash separates documents only in micro-batches of one sequence"),
        ({"precision": {"compute": "fp32"}}, "flash computes in bf16 only"),
        ({"separate_documents": True, "batch": {"micro_batch": 1}}, None),
        ({}, None),
    ],
)
def test_what_flash_cannot_compute_is_refused(keys: dict[str, Any], sentence: str | None) -> None:
    config = PretrainConfig.model_validate({"data": "data", "steps": 200, "attention": "flash", **keys})
    if sentence is None:
        config.check_keys()
        return
    with pytest.raises(ConfigError, match=sentence):
        config.check_keys()


def test_a_model_that_lacks_a_kernel_is_refused() -> None:
    model = bare_model(AutoConfig.for_model("mamba2", hidden_size=16, num_hidden_layers=1, num_heads=4, head_dim=8), "causal_lm")
    with pytest.raises(ConfigError, match="attention: Mamba2ForCausalLM cannot use flex; set attention=sdpa"):
        use_kernel(model, "flex")


@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning")  # transformers sets it
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@torch.no_grad()
def test_flex_separates_documents_as_sdpa_does() -> None:
    torch.manual_seed(0)
    model = bare_model(AutoConfig.for_model(**TINY, vocab_size=257), "causal_lm").eval()
    fingerprint = model_fingerprint(model.config)
    positions = torch.cat([torch.arange(5), torch.arange(11)]).expand(2, -1)
    inputs = {"input_ids": torch.arange(32).view(2, 16), "position_ids": positions}
    with known_documents(inputs), torch.compiler.set_stance("force_eager"):
        expected = model(**inputs, use_cache=False).logits
        use_kernel(model, "flex")
        logits = model(**inputs, use_cache=False).logits
    assert model.config._attn_implementation == "flex_attention"
    assert logits == pytest.approx(expected, abs=1e-5)
    assert model_fingerprint(model.config) == fingerprint

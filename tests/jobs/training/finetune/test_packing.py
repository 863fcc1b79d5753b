"""Packed documents are kept apart, or packing is refused, in whatever format the model computes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.loop.documents import require_separate

GROUP: Any = SimpleNamespace(device=torch.device("cpu"))


class Leaking(LlamaForCausalLM):
    """One that does not look at positions for the borders of documents."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **more: Any) -> Any:
        """Attend to all that stands before."""
        mask = torch.ones_like(input_ids)
        return super().forward(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, **more)


def deep(kind: type[LlamaForCausalLM], dtype: torch.dtype) -> LlamaForCausalLM:
    """A model so deep that its rounding errors add up to what a wide one of 30 layers (SmolLM-135M) has."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=512, num_hidden_layers=60, max_position_embeddings=128, **sizes)
    return kind(config).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_deep_model_rounds_is_no_leak(dtype: torch.dtype) -> None:
    require_separate(deep(LlamaForCausalLM, dtype), GROUP, "packing")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_leaks_is_refused_in_any_format(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match="does not separate packed documents"):
        require_separate(deep(Leaking, dtype), GROUP, "packing")

"""Models of transformers without weights, or with random ones."""

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from ropewalk.jobs.training.loop.architecture.model_record import Head
from ropewalk.jobs.training.loop.architecture.sharing import share_layers


def bare_model(config: Any, head: Head) -> Any:
    """Build the model of a configuration in fp32, with random values."""
    return share_layers(_from_config(config, head), config)


def skeleton(config: Any, head: Head = "causal_lm") -> Any:
    """Build the full model with its parameters on the meta device and correct buffers."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model = _from_config(config, head)
    model.tie_weights()  # not above: there each assignment makes a parameter of its own
    return share_layers(model, config)


def empty_model(config: Any, head: Head = "causal_lm") -> Any:
    """Build the full model on the CPU in fp32 with undefined weights and correct buffers."""
    with no_init_weights():
        model: Any = bare_model(config, head)
    model.tie_weights()  # skipped with the rest of the initialization
    return model


def set_head(config: Any, head: Head) -> Any:
    """Give a configuration the number of outputs of a head."""
    if head == "reward":
        config.num_labels = 1
    return config


def _from_config(config: Any, head: Head) -> Any:
    kind = AutoModelForCausalLM if head == "causal_lm" else AutoModelForSequenceClassification
    return kind.from_config(set_head(config, head), dtype=torch.float32)

"""Hugging Face models from a preset, a configuration or a directory."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.initialization import no_init_weights

from cluster.errors import ConfigError
from jobs.training.config import ModelConfig
from sharding.config import FsdpConfig
from sharding.floats import decoded, encoded, restored
from sharding.fsdp import shard_model
from sharding.group import Group

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {  # for CPUs: a minute or two for 300 steps of 8192 tokens
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    },
    "smollm-135m": {  # HuggingFaceTB/SmolLM-135M but for the vocabulary, which is the data set's
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
    },
}
_PADDING = 1024  # vocabularies are padded to round numbers; more than this is another tokenizer
# keys that say how a model is written down or run, not what it is
_INCIDENTAL = {
    *("transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "architectures", "use_cache"),
    *("id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict"),
}


def model_config(config: ModelConfig, *, vocabulary: int, end_of_document: int, seq_len: int) -> Any:
    """The Hugging Face configuration for data of this vocabulary. Raises ConfigError where the two do not fit."""
    if config.path is not None:
        found = _from_directory(config.path)
    elif config.config is not None:
        found = _from_values({"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": end_of_document, **config.config})
    else:
        assert config.preset is not None
        values = _PRESETS[config.preset]
        found = LlamaConfig(
            **{**values, "max_position_embeddings": max(values["max_position_embeddings"], seq_len)},
            vocab_size=vocabulary,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end_of_document,
            pad_token_id=None,
        )
    check_vocabulary(found, vocabulary)
    limit = getattr(found, "max_position_embeddings", None)
    if limit is not None and seq_len > limit:
        raise ConfigError(f"seq_len: is {seq_len}, the model has {limit} positions (max_position_embeddings)")
    return found


def check_vocabulary(config: Any, vocabulary: int) -> None:
    """Raise ConfigError unless the model's vocabulary is that of the data set's tokenizer, padding apart."""
    size = int(config.vocab_size)
    if not vocabulary <= size < vocabulary + _PADDING:
        raise ConfigError(
            f"the model's vocabulary is {size}, the data set's tokenizer has {vocabulary}: they do not belong together; "
            "preprocess with tokenizer.path set to the model's directory, or choose another model"
        )


def _from_directory(path: str) -> Any:
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(f"model.path: {path} has no config.json; give a Hugging Face model directory")
    return AutoConfig.from_pretrained(path)


def _from_values(values: dict[str, Any]) -> Any:
    kind = values["model_type"]
    try:
        return AutoConfig.for_model(**values)
    except ValueError as error:
        raise ConfigError(f"model.config: {str(error).splitlines()[0][:300]} (model_type is {kind!r})") from None


def identity_of(config: Any) -> dict[str, Any]:
    """The keys that decide the model, as plain values: what a checkpoint is checked against."""
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), sort_keys=True, default=str))
    found: dict[str, Any] = encoded({k: v for k, v in plain.items() if k not in _INCIDENTAL})
    return found


def has_dropout(config: Any) -> bool:
    """Whether any kind of dropout is on."""
    values = config.to_dict()
    return any(isinstance(v, float) and v > 0 for k, v in values.items() if "dropout" in k or k.endswith("pdrop"))


def build_model(config: Any, group: Group, fsdp: FsdpConfig, *, seed: int, weights: bool, path: str | None = None) -> nn.Module:
    """The model split over the group. Its initial weights come from `path`, else from the seed, and are the same
    whatever the world size; with `weights=False` they are left undefined, for a checkpoint to fill."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    source = whole_model(config, seed=seed, weights=weights, path=path) if group.first else None
    return shard_model(skeleton, source, group, fsdp)


def whole_model(config: Any, *, seed: int, weights: bool, path: str | None = None) -> Any:
    """The model in one piece on the CPU, in fp32."""
    if not weights:
        with no_init_weights():
            model = _eager(config)
        model.tie_weights()  # otherwise a part of the initialization that was left out
        return model
    if path is not None:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    torch.manual_seed(seed)
    return _eager(config)


def _eager(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def config_of_identity(identity: dict[str, Any]) -> Any:
    """The configuration that a checkpoint's identity was taken from."""
    defaults = identity_of(AutoConfig.for_model(identity["model_type"]))
    return AutoConfig.for_model(**decoded(restored(identity, defaults)))

"""The Hugging Face configuration of a model: from a preset, from keys, from a directory; and what decides the model."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlamaConfig

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.loop.config import ModelConfig
from ropewalk.sharding.floats import decoded, encoded, restored

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
    check_fit(found, vocabulary, seq_len)
    return found


def check_fit(config: Any, vocabulary: int, seq_len: int) -> None:
    """Raise ConfigError unless the model has the vocabulary of the data set's tokenizer, padding apart, and the positions."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and seq_len > limit:
        raise ConfigError(f"seq_len: is {seq_len}, the model has {limit} positions (max_position_embeddings)")
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


def model_fingerprint(config: Any) -> dict[str, Any]:
    """The keys that decide the model, as plain values: a checkpoint of another fingerprint is refused."""
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), sort_keys=True, default=str))
    found: dict[str, Any] = encoded({k: v for k, v in plain.items() if k not in _INCIDENTAL})
    return found


def has_dropout(config: Any) -> bool:
    """Whether any kind of dropout is on in this configuration."""
    values = config.to_dict()
    return any(isinstance(v, float) and v > 0 for k, v in values.items() if "dropout" in k or k.endswith("pdrop"))


def config_from_fingerprint(fingerprint: dict[str, Any]) -> Any:
    """The Hugging Face configuration that a fingerprint was taken of."""
    defaults = model_fingerprint(AutoConfig.for_model(fingerprint["model_type"]))
    return AutoConfig.for_model(**decoded(restored(fingerprint, defaults)))

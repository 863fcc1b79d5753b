"""The Hugging Face configuration of a model: from a preset, keys or a directory; and its fingerprint."""

import json
import math
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, LlamaConfig

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.loop.architecture.fit import check_sizes, read_sizes
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.sharding.checkpoints.floats import decode_floats, encode_floats, restore_floats

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_PRESETS = {
    "tiny": (96, 256, 3, 3, 3),  # for CPUs: a minute or two for 300 steps of 8192 tokens
    "small": (512, 1408, 6, 8, 8),
    "smollm-135m": (576, 1536, 30, 9, 3),  # HuggingFaceTB/SmolLM-135M with the data set's vocabulary
}
# one shape: heads of 128, four for each key and value head, a layer for each 96 of width, up to a multiple of four
_WIDTHS = {"150m": 1024, "400m": 1536, "1b": 2048, "3b": 3072, "8b": 4096}
_UNTIED_WIDTH = 4096  # from here on the head is small beside the layers
_POSITIONS = 2048  # of a preset, at least
# keys about storage or execution, which do not change the model
_INCIDENTAL = {
    *("transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "architectures", "use_cache"),
    *("id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict"),
}


def model_config(config: ModelConfig, *, vocabulary: int, end_of_document: int, seq_len: int) -> Any:
    """Return the Hugging Face configuration for data of this vocabulary. Raises ConfigError if the two do not match."""
    result = unchecked_config(config, vocabulary=vocabulary, end_of_document=end_of_document, seq_len=seq_len)
    check_fit(result, vocabulary, seq_len)
    return result


def unchecked_config(config: ModelConfig, *, vocabulary: int, end_of_document: int, seq_len: int) -> Any:
    """Return the Hugging Face configuration, which for a preset has the vocabulary and positions of the data."""
    if config.path is not None:
        return _from_directory(config.path)
    if config.config is not None:
        return _from_values({"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": end_of_document, **config.config})
    assert config.preset is not None
    return LlamaConfig(
        **_preset_values(config.preset),
        max_position_embeddings=max(_POSITIONS, seq_len),
        vocab_size=vocabulary,
        bos_token_id=None,
        eos_token_id=end_of_document,
        pad_token_id=None,
    )


def _preset_values(preset: str) -> dict[str, Any]:
    if preset in _PRESETS:
        return {**dict(zip(_SIZES, _PRESETS[preset], strict=True)), "tie_word_embeddings": True}
    width = _WIDTHS[preset]
    intermediate, layers = math.ceil(width * 8 / 3 / 256) * 256, math.ceil(width / 96 / 4) * 4
    sizes = dict(zip(_SIZES, (width, intermediate, layers, width // 128, width // 512), strict=True))
    # the spread of first weights falls with the square root of width, as learning rates that transfer assume
    spread = 0.02 * math.sqrt(1024 / width)
    return {**sizes, "tie_word_embeddings": width < _UNTIED_WIDTH, "initializer_range": spread}


def check_fit(config: Any, vocabulary: int, seq_len: int) -> None:
    """Raise ConfigError unless it is a causal model with the vocabulary of the tokenizer, up to padding, and enough positions."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"models of type {config.model_type!r} are not causal language models; choose a decoder, such as llama")
    check_sizes(int(config.vocab_size), getattr(config, "max_position_embeddings", None), vocabulary, seq_len)


def _from_directory(path: str) -> Any:
    read_sizes("model.path", path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:  # such as an architecture that only code in the directory defines
        raise ConfigError(f"model.path: {path} cannot be opened: {str(error).splitlines()[0][:300]}") from None


def _from_values(values: dict[str, Any]) -> Any:
    kind = values["model_type"]
    try:
        return AutoConfig.for_model(**values)
    except ValueError as error:
        raise ConfigError(f"model.config: {str(error).splitlines()[0][:300]} (model_type is {kind!r})") from None


def model_fingerprint(config: Any) -> dict[str, Any]:
    """Return the keys that determine the model, as plain values: a checkpoint of another fingerprint is refused."""
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), sort_keys=True, default=str))
    fingerprint: dict[str, Any] = encode_floats({k: v for k, v in plain.items() if k not in _INCIDENTAL})
    return fingerprint


def has_dropout(config: Any) -> bool:
    """Return True if the configuration enables any kind of dropout."""
    values = config.to_dict()
    return any(isinstance(v, float) and v > 0 for k, v in values.items() if "dropout" in k or k.endswith("pdrop"))


def config_from_fingerprint(fingerprint: dict[str, Any]) -> Any:
    """Return the Hugging Face configuration from which a fingerprint was taken."""
    defaults = model_fingerprint(AutoConfig.for_model(fingerprint["model_type"]))
    return AutoConfig.for_model(**decode_floats(restore_floats(fingerprint, defaults)))

"""Checks of a model against its data: vocabulary and positions. Light, since a submission runs them before any node does."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import PathView
from ropewalk.jobs.runs.models.find_model import check_model_run
from ropewalk.jobs.training.loop.model_keys import ModelConfig

if TYPE_CHECKING:
    from ropewalk.datapipe.manifest import Manifest

_PADDING = 1024  # vocabularies may be padded to a round number; a larger difference means another tokenizer


def check_model(
    key: str, model: ModelConfig, here: PathView = Path, *, manifests: Sequence["Manifest"] = (), seq_len: int | None = None
) -> None:
    """Raise ConfigError unless a model that this machine can access exists, and fits the vocabulary of the data and `seq_len`."""
    if model.run is not None:
        check_model_run(f"{key}.run", model.run)
    sizes = model.config if model.config is not None else read_sizes(f"{key}.path", model.path, here) if model.path else None
    if sizes is not None:
        vocabulary = manifests[0].tokenizer.vocabulary if manifests else None
        check_sizes(sizes.get("vocab_size"), sizes.get("max_position_embeddings"), vocabulary, seq_len)


def read_sizes(key: str, path: str, here: PathView = Path) -> Mapping[str, Any] | None:
    """Return the values in the config.json of a model's directory; None if this machine cannot access it. Raises ConfigError."""
    local = here(path)
    if local is None:
        return None
    if not local.is_dir():
        raise ConfigError(f"{key}: {path} is not a directory; give a Hugging Face model directory, with config.json and weights")
    try:
        values = json.loads((local / "config.json").read_text())
    except FileNotFoundError:
        raise ConfigError(f"{key}: {path} has no config.json; give a Hugging Face model directory") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path}/config.json cannot be read: {error}; save the model again") from None
    return values if isinstance(values, dict) else {}


def check_sizes(size: int | None, positions: int | None, vocabulary: int | None, seq_len: int | None) -> None:
    """Raise ConfigError unless a model has the vocabulary of the data's tokenizer, up to padding, and positions for `seq_len`.

    Values that are None are unknown.
    """
    if positions is not None and seq_len is not None and seq_len > positions:
        raise ConfigError(f"seq_len: {seq_len} exceeds the model's {positions} positions (max_position_embeddings)")
    if size is not None and vocabulary is not None and not vocabulary <= size < vocabulary + _PADDING:
        raise ConfigError(
            f"the model's vocabulary has {size} tokens, the data set's tokenizer {vocabulary}: they do not match; "
            "preprocess with tokenizer.path set to the model's directory, or choose another model"
        )

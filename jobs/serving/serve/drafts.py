"""Draft models of serving runs: checks and lookup."""

import json
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.inference.engines.find import BUILT_IN, PREFERRED, PREFERRED_ON_GPUS, engine_names, find_engine
from ropewalk.jobs.runs.models.find_model import find_model
from ropewalk.jobs.serving.serve.models import find_source

TOKENIZER = "tokenizer.json"


def check_engine(engine: str, gpus: float) -> None:
    """Raise ConfigError if the engine takes no draft, as far as it is installed here; `auto` stands for those it may choose."""
    names = [engine] if engine != "auto" else PREFERRED_ON_GPUS if gpus else PREFERRED
    installed = [find_engine(name) for name in names if name in engine_names()]
    if installed and not any(each.capabilities.drafts for each in installed):
        others = ", ".join(name for name in BUILT_IN if find_engine(name).capabilities.drafts)
        raise ConfigError(
            f"draft: engine {installed[0].name} takes no draft; leave draft unset, or set engine to one of {others}"
        )


def check_draft(model: str, draft: str) -> None:
    """Raise ConfigError unless the draft exists and, as far as tokenizer files tell, has the model's tokens."""
    try:
        draft_model = find_model(draft)
    except ConfigError as error:
        raise ConfigError(str(error).replace("model:", "draft:", 1)) from None
    draft_tokens, model_tokens = _tokens(draft_model), _tokens(find_model(model))
    if draft_tokens is not None and model_tokens is not None and draft_tokens != model_tokens:
        raise ConfigError(f"draft: {draft} has other tokens than {model}; distil a draft from the model itself")


def draft_directory(ref: str, folder: Path) -> Path:
    """Return the Hugging Face directory of a draft, exporting it to `folder` if necessary. Raises ConfigError."""
    source = find_source(ref)
    version = source.wanted(None, gated=False).stable
    if version is None:
        raise ConfigError(f"draft: {ref} points to no version")
    return source.directory(version, folder)


def _tokens(model: RunDir | Path) -> Any:
    """Return the vocabulary and added tokens in a tokenizer file; None if there is no such file."""
    folder = model if isinstance(model, Path) else model.tokenizer
    try:
        tokenizer = json.loads((folder / TOKENIZER).read_text())
        return tokenizer["model"].get("vocab"), [(token["id"], token["content"]) for token in tokenizer.get("added_tokens", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None

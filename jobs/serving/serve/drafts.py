"""The draft of a serving run: a smaller model that guesses tokens ahead for the one that answers."""

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
    """Raise ConfigError unless the draft is there, with the tokens of the model as far as their files tell."""
    try:
        own = find_model(draft)
    except ConfigError as error:
        raise ConfigError(str(error).replace("model:", "draft:", 1)) from None
    tokens, others = _tokens(own), _tokens(find_model(model))
    if tokens is not None and others is not None and tokens != others:
        raise ConfigError(f"draft: {draft} has other tokens than {model}; distil a draft out of the model itself")


def draft_directory(ref: str, folder: Path) -> Path:
    """The Hugging Face directory of a draft; what must be exported first goes to `folder`. Raises ConfigError."""
    source = find_source(ref)
    version = source.wanted(None, gated=False).stable
    if version is None:
        raise ConfigError(f"draft: {ref} points to no version")
    return source.directory(version, folder)


def _tokens(place: RunDir | Path) -> Any:
    """What a tokenizer's file says of its tokens; None where there is no such file."""
    folder = place if isinstance(place, Path) else place.tokenizer
    try:
        found = json.loads((folder / TOKENIZER).read_text())
        return found["model"].get("vocab"), [(token["id"], token["content"]) for token in found.get("added_tokens", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None

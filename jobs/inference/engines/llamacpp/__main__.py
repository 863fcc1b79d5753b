"""`python -m ropewalk.jobs.inference.engines.llamacpp FILE.gguf`: serve a model by llama.cpp."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.engines.api.serve import main
from ropewalk.jobs.inference.engines.engine import EngineOptions

if TYPE_CHECKING:
    from ropewalk.jobs.inference.engines.api.app import Loaded


def load(model: str, options: EngineOptions) -> "Loaded":
    """Load a GGUF file with the tokenizer of its model. Raises ConfigError."""
    from ropewalk.jobs.inference.engines.api.app import Loaded
    from ropewalk.jobs.inference.engines.api.prompts import Prompts
    from ropewalk.jobs.inference.engines.llamacpp.gguf_facts import read_facts
    from ropewalk.jobs.inference.engines.llamacpp.plugin import LlamaCppEngine
    from ropewalk.jobs.inference.engines.llamacpp.sampler import DEFAULT_CONTEXT, LlamaCppDraft, LlamaCppSampler

    gguf = LlamaCppEngine().prepare(Path(model), options)
    facts = read_facts(gguf)
    if options.context is not None and options.context > facts.context:
        raise ConfigError(f"context: {options.context} tokens exceed the limit of {gguf}, {facts.context}; set a smaller number")
    prompts = Prompts(facts.tokenizer, facts.vocabulary)
    context = options.context or min(facts.context, DEFAULT_CONTEXT)
    draft = LlamaCppDraft(options.draft, options.draft_tokens) if options.draft is not None else None
    sampler = LlamaCppSampler(gguf, prompts, slots=options.slots, threads=options.threads, context=context, draft=draft)
    return Loaded(sampler, prompts)


def leave_out_torch() -> None:
    """Block the import of torch: transformers opens tokenizers without it in half the time and memory."""
    cast(dict[str, Any], sys.modules)["torch"] = None


if __name__ == "__main__":
    leave_out_torch()
    main("python -m ropewalk.jobs.inference.engines.llamacpp", load)

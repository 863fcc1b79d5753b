"""`python -m jobs.engines.transformers MODEL`: serve a model by transformers."""

from typing import TYPE_CHECKING

from jobs.engines.api.serve import main
from jobs.engines.engine import EngineOptions

if TYPE_CHECKING:
    from jobs.engines.api.app import Loaded


def load(model: str, options: EngineOptions) -> "Loaded":
    """Open the model of a run or a directory. Raises ConfigError, CheckpointError."""
    import torch

    from cluster.run.directory import RunDir
    from jobs.engines.api.app import Loaded
    from jobs.engines.api.prompts import Prompts
    from jobs.engines.transformers.guesses import Draft
    from jobs.engines.transformers.sampler import TransformersSampler
    from jobs.inference.open_model import open_model, serving_dtype
    from jobs.runs.find_model import find_model
    from sharding.group import rank_device

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = find_model(model)
    device = rank_device()
    dtype = serving_dtype(found, device)
    opened = open_model(model, device=device, dtype=dtype)
    draft = None
    if options.draft is not None:
        draft = Draft(open_model(str(options.draft), device=device, dtype=dtype), options.draft_tokens)
    sampler = TransformersSampler(opened, slots=options.slots, context=options.context, draft=draft)
    return Loaded(sampler, Prompts(found.tokenizer if isinstance(found, RunDir) else found, sampler.vocabulary))


if __name__ == "__main__":
    main("python -m jobs.engines.transformers", load)

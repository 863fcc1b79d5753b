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
    from jobs.inference.open_model import open_model
    from jobs.runs.find_model import find_model

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = find_model(model)
    opened = open_model(model)
    draft = Draft(open_model(str(options.draft)), options.draft_tokens) if options.draft is not None else None
    sampler = TransformersSampler(opened, slots=options.slots, context=options.context, draft=draft)
    return Loaded(sampler, Prompts(found.tokenizer if isinstance(found, RunDir) else found, sampler.vocabulary))


if __name__ == "__main__":
    main("python -m jobs.engines.transformers", load)

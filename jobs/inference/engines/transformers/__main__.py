"""`python -m ropewalk.jobs.inference.engines.transformers MODEL`: serve a model by transformers."""

from typing import TYPE_CHECKING

from ropewalk.jobs.inference.engines.api.serve import main
from ropewalk.jobs.inference.engines.engine import EngineOptions

if TYPE_CHECKING:
    from ropewalk.jobs.inference.engines.api.app import Loaded


def load(model: str, options: EngineOptions) -> "Loaded":
    """Open the model of a run or a directory. Raises ConfigError, CheckpointError."""
    import torch

    from ropewalk.cluster.errors import ConfigError
    from ropewalk.cluster.run.directory import RunDir
    from ropewalk.jobs.inference.engines.api.app import Loaded
    from ropewalk.jobs.inference.engines.api.prompts import Prompts
    from ropewalk.jobs.inference.engines.transformers.sampler import TransformersSampler
    from ropewalk.jobs.inference.scoring.open_model import open_model, serving_dtype
    from ropewalk.jobs.runs.models.find_model import find_model
    from ropewalk.sharding.group import rank_device

    if options.draft is not None:
        raise ConfigError("engine transformers takes no draft; leave draft unset, or choose another engine")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    location = find_model(model)
    device = rank_device()
    dtype = serving_dtype(location, device)
    opened = open_model(model, device=device, dtype=dtype)
    sampler = TransformersSampler(opened, slots=options.slots, context=options.context)
    return Loaded(sampler, Prompts(location.tokenizer if isinstance(location, RunDir) else location, sampler.vocabulary))


if __name__ == "__main__":
    main("python -m ropewalk.jobs.inference.engines.transformers", load)

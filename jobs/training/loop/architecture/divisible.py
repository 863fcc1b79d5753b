"""Check of a model against tensor parallelism, for a submission."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import PathView
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.sharding.config import ParallelConfig

if TYPE_CHECKING:
    from ropewalk.datapipe.manifest import Manifest

_SOME_VOCABULARY = 1 << 15  # of data that this machine cannot read


def check_divisible(
    model: ModelConfig,
    parallel: ParallelConfig,
    here: PathView = Path,
    *,
    manifests: Sequence["Manifest"] = (),
    seq_len: int | None = None,
    adapter: Callable[[Any], Any] | None = None,
) -> None:
    """Raise ConfigError if tensor parallelism cannot divide the model, or what `adapter` makes of it.

    Imports torch, unless there is none.
    """
    local = here(model.path) if model.path is not None else None
    unseen = model.run is not None or (model.path is not None and local is None)  # checked when the model is built
    if parallel.tensor == 1 or unseen:
        return
    from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
    from ropewalk.jobs.training.loop.architecture.model_config import unchecked_config
    from ropewalk.sharding.tensor_parallel import tensor_problem

    visible = model.model_copy(update={"path": str(local)}) if local is not None else model
    vocabulary = manifests[0].tokenizer.vocabulary if manifests else _SOME_VOCABULARY
    config = unchecked_config(visible, vocabulary=vocabulary, end_of_document=0, seq_len=seq_len or 1)
    bare = skeleton(config)
    adapted = adapter(bare) if adapter is not None else bare
    if (problem := tensor_problem(adapted, parallel)) is not None:
        raise ConfigError(problem)

"""Engines that answer prompts in a worker's process: transformers, and those of the entry-point group.

An entry point is a callable that takes an `EngineSetup` and returns an engine. It says in log-probabilities at the temperature of
sampling, not cut to top_p, how likely each of its tokens was: what learns compares its own with them.

llama.cpp is none of them, for it does not pay: weights change with each version, and to write SmolLM2-135M as GGUF in F32, the
format in which its log-probabilities are transformers', and to load it take 4.7 CPU seconds; then a token takes 18 CPU ms in 16
slots of llama.cpp, and 16 in a batch of 16 of transformers (25 and 35 in 4). Its server also draws by numbers of its own, in
batches of whatever has arrived, so that a chunk that is drawn again would be another one.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.align.grpo.chunks import Answering
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.rollouts.generate import Answer, answer_all
from ropewalk.jobs.training.rollouts.sampling import Draw, Sampling, uniforms

GROUP = "ropewalk.rollout_engines"


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """What an engine is made for."""

    config: GrpoConfig
    seed: int
    ends: frozenset[int]  # tokens that end an answer
    tokenizer: Path
    empty_model: Callable[[], Any]  # the unsharded model of transformers, with whatever adapter, its weights undefined


class RolloutEngine(Protocol):
    """Answers prompts by the newest weights that it was given."""

    def load(self, weights: Path) -> None:
        """Take over the weights of a policy: a safetensors file with all parameters and buffers of the model by name."""
        ...

    def answer(self, prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> list[Answer]:
        """An answer to each prompt; a function of weights, prompts and draws alone."""
        ...


def find_engine(setup: EngineSetup) -> RolloutEngine:
    """The engine that the configuration names. Raises ConfigError with the nearest name."""
    name = setup.config.engine
    if name == "transformers":
        return TransformersEngine(setup)
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        known = ["transformers", *points]
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"grpo.engine: unknown engine {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; known: {', '.join(known)}"
        )
    found: RolloutEngine = points[name].load()(setup)
    return found


def answering(model: nn.Module, config: GrpoConfig, seed: int, ends: frozenset[int]) -> Answering:
    """Answers of a model of transformers."""
    sampling = Sampling(config.temperature, config.top_p, config.top_k)

    def answer(prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> list[Answer]:
        return answer_all(model, prompts, uniforms(seed, draws, config.max_new_tokens), ends, sampling)

    return answer


class TransformersEngine:
    """The reference: the model itself, unsharded, in this process."""

    def __init__(self, setup: EngineSetup) -> None:
        self._model = setup.empty_model().eval()
        self.answer = answering(self._model, setup.config, setup.seed, setup.ends)

    def load(self, weights: Path) -> None:
        """Take over the weights of a policy."""
        from safetensors.torch import load_file

        missing, unknown = self._model.load_state_dict(load_file(weights), strict=False)
        assert not unknown, unknown[:3]
        assert not set(missing) & {name for name, _ in self._model.named_parameters()}, missing[:3]  # a tied weight is there once

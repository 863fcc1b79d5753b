"""Rollout engines: generators in a worker's process, transformers or those of the entry-point group.

An entry point is a callable that takes an `EngineSetup` and returns an engine. An engine returns log-probabilities at the
sampling temperature, not truncated to top_p: the loss compares its own with them.

llama.cpp is not supported, since it is slower here: weights change with each version. To write SmolLM2-135M as GGUF in F32, the
format in which its log-probabilities are transformers', and to load it take 4.7 CPU seconds; then a token takes 18 CPU ms in 16
slots of llama.cpp, and 16 in a batch of 16 of transformers (25 and 35 in 4). Its server also uses its own random numbers, in
batches of whatever has arrived, so that a chunk generated again would differ.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.align.grpo.chunks import GenerateFunction
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.rollouts.generate import Answer, Draw, Sampling, generate_answers, uniforms

GROUP = "ropewalk.rollout_engines"


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """Parameters of a rollout engine."""

    config: GrpoConfig
    seed: int
    ends: frozenset[int]  # tokens that end an answer
    tokenizer: Path
    empty_model: Callable[[], Any]  # the unsharded model of transformers with its adapter and undefined weights


class RolloutEngine(Protocol):
    """Generates answers with the newest weights that it loaded."""

    def load(self, weights: Path) -> None:
        """Load the weights of a policy: a safetensors file with all parameters and buffers of the model by name."""
        ...

    def answer(self, prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> list[Answer]:
        """Generate an answer to each prompt: a function of weights, prompts and identities (`draws`) alone."""
        ...


def find_engine(setup: EngineSetup) -> RolloutEngine:
    """Create the engine that the configuration names. Raises ConfigError with the nearest name."""
    name = setup.config.engine
    if name == "transformers":
        return TransformersEngine(setup)
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        names = ["transformers", *points]
        near = difflib.get_close_matches(name, names, n=1)
        raise ConfigError(
            f"grpo.engine: unknown engine {name!r}{f'; did you mean {near[0]!r}?' if near else ''}; known: {', '.join(names)}"
        )
    engine: RolloutEngine = points[name].load()(setup)
    return engine


def generate_function(model: nn.Module, config: GrpoConfig, seed: int, ends: frozenset[int]) -> GenerateFunction:
    """Return a function that generates answers with a model of transformers."""
    sampling = Sampling(config.temperature, config.top_p, config.top_k)

    def answer(prompts: Sequence[Sequence[int]], draws: Sequence[Draw]) -> list[Answer]:
        return generate_answers(model, prompts, uniforms(seed, draws, config.max_new_tokens), ends, sampling)

    return answer


class TransformersEngine:
    """The reference engine: the model itself, unsharded, in this process."""

    def __init__(self, setup: EngineSetup) -> None:
        self._model = setup.empty_model().eval()
        self.answer = generate_function(self._model, setup.config, setup.seed, setup.ends)

    def load(self, weights: Path) -> None:
        from safetensors.torch import load_file

        missing, unknown = self._model.load_state_dict(load_file(weights), strict=False)
        assert not unknown, unknown[:3]
        assert not set(missing) & {name for name, _ in self._model.named_parameters()}, missing[
            :3
        ]  # a tied weight is stored once

"""Open a reward model of a run or a Hugging Face directory, and score answers with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.models.find_model import find_model
from ropewalk.jobs.training.align.preferences.encode import Encoder
from ropewalk.jobs.training.align.preferences.prepare import read_data_manifest
from ropewalk.jobs.training.align.preferences.records import Preference, Refused, Text
from ropewalk.jobs.training.loop.architecture.model_record import require_record
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model

# S sequences, T tokens


class RewardModel:
    """Scores answers one by one, so that a score does not depend on other answers."""

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self.model, self.encoder = model, encoder

    def score(self, prompt: Text, answers: Sequence[Text]) -> list[float]:
        """Score each answer to a prompt, text or messages; NaN for an invalid answer, such as a user's turn."""
        scores = []
        for answer in answers:
            tokens = self.encoder.encode(Preference(prompt, (answer,)))
            if isinstance(tokens, Refused):
                scores.append(float("nan"))
                continue
            scores.append(self.score_tokens(torch.tensor([[*tokens.prompt, *tokens.answers[0]]])).item())
        return scores

    @torch.no_grad()
    def score_tokens(self, input_ids_ST: torch.Tensor) -> torch.Tensor:
        """Score each sequence, [S], padded at its end with the model's own padding token."""
        scores: torch.Tensor = self.model(input_ids=input_ids_ST, use_cache=False).logits[:, 0]
        return scores


def open_reward_model(ref: str, root: Path | None = None) -> RewardModel:
    """Open the reward model that a user names, on the CPU in fp32. Raises ConfigError if it is not one."""
    target = find_model(ref, root)
    if isinstance(target, RunDir):
        return _of_run(target)
    config = AutoConfig.from_pretrained(target, trust_remote_code=False)
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or []):
        raise ConfigError(
            f"{ref}: is not a reward model but {config.architectures}; train one with `method: reward`, or export it"
        )
    model = AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32, trust_remote_code=False).eval()
    if model.config.num_labels != 1:
        raise ConfigError(f"{ref}: has {model.config.num_labels} outputs, a reward model has one; choose another")
    encoder = Encoder(target, seq_len=config.max_position_embeddings, cut=True, verbatim=None, system=None)
    return RewardModel(model, encoder)


def _of_run(run: RunDir) -> RewardModel:
    if require_record(run).head != "reward":
        raise ConfigError(f"{run.id}: is not a reward model; name a run of `align` with method: reward")
    plan = (read_data_manifest(run.path / "pairs") or {}).get("plan", {})
    encoder = Encoder(
        run.tokenizer,
        seq_len=plan.get("seq_len") or require_record(run).seq_len,
        cut=True,
        verbatim=plan.get("verbatim"),
        system=plan.get("system"),
    )
    return RewardModel(load_model(run)[0], encoder)

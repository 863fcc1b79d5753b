"""Objects of a GRPO run that ranks and workers share: model plan, tokenizer, reward pool, end tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.jobs.runs.program.environment import project_folder
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.grpo.prompts import TOKENIZER, Prompts
from ropewalk.jobs.training.align.grpo.rewards.pool import RewardEnvironment, RewardPool
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.loop.model import ModelPlan


def open_tokenizer(folder: Path) -> Any:
    """Open the tokenizer that is stored beside the prompts."""
    return AutoTokenizer.from_pretrained(folder / TOKENIZER, trust_remote_code=False)


def open_pool(run: RunDir, config: GrpoConfig) -> RewardPool:
    """Start the processes that compute a run's rewards."""
    environment = RewardEnvironment(project_folder(run, config.directory), str(run.path.absolute().parent))
    return RewardPool(config.rewards, config.reward_processes, environment)


def policy_plan(run: RunDir, config: AlignConfig, counted: Mapping[str, Any], prompts: Prompts) -> ModelPlan:
    """Plan the model that is trained, with its adapter."""
    record = TokenizerRecord.model_validate(counted["tokenizer"])
    seq_len = int(counted.get("longest") or prompts.longest) + config.grpo.max_new_tokens
    return ModelPlan.of(config.model, run, tokenizer=record, seq_len=seq_len).with_lora(config.lora, config.seed)


def answer_ends(config: AlignConfig, tokenizer: Any, end_of_document: int) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's, and those that the model's own directory names."""
    ends = {end_of_document, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    if config.model.path is not None:
        try:
            named = GenerationConfig.from_pretrained(config.model.path).eos_token_id
        except OSError:  # no generation_config.json
            named = None
        ends |= set(named if isinstance(named, list) else [] if named is None else [named])
    return frozenset(ends)

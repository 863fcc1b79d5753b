"""The options, one a line, and the configuration of a pair of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.finetune.config import FinetuneConfig

STEPS = 3
SAVED_STEP = 1  # where `elastic resume` goes on with another number of ranks
EXACT = 1e-10
PACKED, RESUMED, CHUNKED, DOCUMENTS = "packing", "elastic resume", "chunked loss", "separate documents"
FLOAT8, EXPERTS = "float8, emulated", "whole experts"


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option: its keys, and how equal results must be. The runner asks for options that need more than keys by name."""

    keys: Mapping[str, Mapping[str, Any] | float] = field(default_factory=dict)
    tolerance: float = EXACT  # relative, of losses, norms and weights
    neutral: bool = False  # it changes no loss
    exact: bool = True  # it works in fp64


OPTIONS = {
    "bf16": Option(keys={"precision": {"compute": "bf16"}}, tolerance=2e-2),
    "selective recomputation": Option(keys={"parallel": {"activation_checkpointing": "selective"}}, neutral=True),
    "full recomputation": Option(keys={"parallel": {"activation_checkpointing": "full"}}, neutral=True),
    "compile": Option(keys={"parallel": {"compile": True}}, neutral=True),
    "HSDP": Option(keys={"parallel": {"replicate": 2}}, neutral=True),
    "tensor": Option(keys={"parallel": {"tensor": 2}}, neutral=True),
    EXPERTS: Option(keys={"parallel": {"tensor": 2, "expert": 2}}),  # its model is another one
    PACKED: Option(),
    DOCUMENTS: Option(),
    "EMA": Option(keys={"ema": {"decay": 0.9}}, neutral=True),
    "Muon": Option(keys={"optim": {"name": "muon"}}, tolerance=1e-3, exact=False),  # it orthogonalizes in bf16
    "LoRA": Option(keys={"lora": {"rank": 4}}),
    "accumulation": Option(keys={"batch": {"micro_batch": 1}, "parallel": {"accumulate": "sharded"}}, neutral=True),
    RESUMED: Option(neutral=True),
    CHUNKED: Option(neutral=True),
    "z-loss": Option(keys={"z_loss": 1e-2}),
    FLOAT8: Option(keys={"precision": {"float8": "emulated"}}, tolerance=1e-2, exact=False),
    "bf16 moments": Option(keys={"precision": {"optimizer": "bf16"}}, tolerance=1e-3, exact=False),
}
BASE: dict[str, Any] = {
    "model": {"path": "model"},
    "data": "chats",
    "steps": STEPS,
    "batch": {"global_batch": 8, "micro_batch": 8},
    "optim": {"lr": 1e-2, "warmup_steps": 1, "betas": [0.9, 0.95]},
}


def all_choices() -> list[tuple[str, ...]]:
    """Return nothing, each option alone, and every pair."""
    return [choice for size in (0, 1, 2) for choice in combinations(OPTIONS, size)]


def config_of(choice: tuple[str, ...]) -> FinetuneConfig | str:
    """Return the configuration of these options, or the reason why it is refused."""
    if DOCUMENTS in choice and {PACKED, "LoRA"} & set(choice):
        return "separate_documents is a key of pretrain, which neither packs conversations nor trains adapters"
    keys = {name: dict(value) if isinstance(value, dict) else value for name, value in BASE.items()}
    for name in choice:
        for section, values in OPTIONS[name].keys.items():
            if not isinstance(values, Mapping):
                keys[section] = values
                continue
            inside = keys.setdefault(section, {})
            if both := [
                key for key in values if inside.get(key, values[key]) not in {values[key], BASE.get(section, {}).get(key)}
            ]:
                return f"both are values of {section}.{both[0]}: choose one"
            inside.update(values)
    if {EXPERTS, "LoRA"} <= set(choice):
        keys["lora"]["targets"] = ["q_proj", "o_proj"]  # experts have no adapter: a submission of others is refused
    try:
        config = FinetuneConfig.model_validate(keys)
        config.check_keys()
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    except ConfigError as error:
        return str(error)
    return config


def tolerance_of(choice: tuple[str, ...]) -> float:
    return max((OPTIONS[name].tolerance for name in choice), default=EXACT)

"""The keys of `method: grpo`: generation, rewards, and the loss."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from ropewalk.cluster.config import CodeConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPath, Resolve
from ropewalk.cluster.section import Section, default_text
from ropewalk.jobs.training.align.reward_functions import check_name

Variant = Literal["grpo", "dr_grpo", "dapo", "gspo"]
Scale = Literal["group", "batch", "none"]
Average = Literal["sequence", "token", "constant"]
Ratio = Literal["token", "sequence"]


class RewardConfig(Section):
    """A reward: its name and options, and its weight."""

    name: str = Field(
        description="exact_match, regex, math_verify, reasoning_gym, length, model, an entry point's, or module:function"
    )
    options: dict[str, Any] = Field(default={}, description="options of the reward")
    weight: float = Field(default=1.0, description="weight in the sum of rewards")
    seconds: float = Field(default=10.0, gt=0, description="time limit of a call, after which its process is killed and replaced")

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        try:
            check_name(self.name)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("rewards: ")) from None
        return self

    def with_model(self, resolve: Resolve) -> "RewardConfig":
        """Return the reward with its model, if it has one, replaced by what `resolve` returns."""
        if self.name != "model" or not isinstance(self.options.get("of"), str):
            return self
        model = resolve("grpo.rewards.model.of", self.options["of"], "model")
        return self.model_copy(update={"options": {**self.options, "of": model}})

    @property
    def label(self) -> str:
        """The name in metrics and in the ledger."""
        return self.name.rpartition(":")[2]


def parse_rewards(value: Any) -> Any:
    """Parse the rewards of a job file as a list of {name, options, weight, seconds}. Raises ValueError.

    An entry is a name, or {NAME: {option: value}} with `weight` and `seconds` beside the name.
    """
    entries = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(entries, Sequence):
        raise ValueError(f"must be a list of names or of {{NAME: {{option: value}}, weight: W}}, is {value!r}")
    return [_parse_reward(entry) for entry in entries]


def _parse_reward(entry: Any) -> Any:
    if isinstance(entry, str):
        return {"name": entry}
    if not isinstance(entry, Mapping) or "name" in entry:
        return entry
    names = [key for key in entry if key not in {"weight", "seconds"}]
    if len(names) != 1:
        raise ValueError(f"{dict(entry)!r} must name one reward, beside weight and seconds; use one entry per reward")
    options = entry[names[0]] or {}
    return {"name": names[0], "options": options, **{key: entry[key] for key in ("weight", "seconds") if key in entry}}


class LossKeys(NamedTuple):
    """The components of a loss variant."""

    scale: Scale
    average: Average
    ratio: Ratio
    clip_low: float
    clip_high: float
    mask_truncated: bool
    dynamic_sampling: bool


VARIANTS: dict[Variant, LossKeys] = {
    "grpo": LossKeys("group", "sequence", "token", 0.2, 0.2, False, False),  # DeepSeekMath, 2402.03300
    "dr_grpo": LossKeys("none", "constant", "token", 0.2, 0.2, False, False),  # 2503.20783
    "dapo": LossKeys("group", "token", "token", 0.2, 0.28, True, True),  # 2503.14476
    "gspo": LossKeys("group", "sequence", "sequence", 3e-4, 4e-4, False, False),  # 2507.18071
}


class GrpoConfig(Section):
    """Group-relative policy optimization. Unset keys follow from the variant."""

    variant: Variant = Field(default="grpo", description="loss of DeepSeekMath (grpo), Dr.GRPO, DAPO or GSPO")
    group_size: int = Field(default=8, ge=2, description="answers per prompt; batch.global_batch must be a multiple")
    max_new_tokens: int = Field(
        default=256, ge=1, description="maximum tokens of an answer; a prompt may use the rest of seq_len"
    )
    temperature: float = Field(default=1.0, gt=0, description="temperature of sampling and of all log-probabilities")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the smallest set of tokens with this probability")
    top_k: int | None = Field(default=None, ge=1, description="sample from this many of the likeliest tokens; unset: all")
    rewards: Annotated[tuple[RewardConfig, ...], BeforeValidator(parse_rewards)] = Field(
        default=(RewardConfig(name="exact_match"),),
        description="rewards to sum: names, or {NAME: {option: value}, weight: W, seconds: S}",
    )
    on_failed_reward: Literal["drop", "zero", "error"] = Field(
        default="drop",
        description="reaction if a reward raises, returns no number or takes too long: drop the answer, count 0, or fail",
    )
    directory: DataPath = Field(
        default=".",
        description="where module:function is imported from",
        json_schema_extra=default_text("where you submit"),
    )
    code: CodeConfig = Field(default=CodeConfig(), description="transfer of the code around the directory to a cluster")
    reward_processes: int = Field(default=1, ge=1, description="processes per rank that compute rewards")
    kl: float = Field(default=0.0, ge=0, description="weight of the KL divergence (k3) from the reference; 0: no reference")
    scale: Scale | None = Field(
        default=None, description="divide advantages by the rewards' standard deviation in the group or batch"
    )
    average: Average | None = Field(
        default=None,
        description="mean of the answers' means (sequence), of tokens, or divided by answers times max_new_tokens (constant)",
    )
    ratio: Ratio | None = Field(default=None, description="importance ratio per token or per sequence")
    clip_low: float | None = Field(default=None, gt=0, description="clip the ratio at 1 - clip_low")
    clip_high: float | None = Field(default=None, gt=0, description="clip the ratio at 1 + clip_high")
    max_ratio: float = Field(default=2.0, gt=1, description="upper limit of ratios if max_staleness is above 0")
    mask_truncated: bool | None = Field(default=None, description="do not train on answers that max_new_tokens cut off")
    dynamic_sampling: bool | None = Field(
        default=None, description="replace a group whose rewards are all equal by one of another prompt"
    )
    max_tries: int = Field(default=4, ge=1, description="dynamic_sampling: groups to try for one slot of the batch")
    max_staleness: int = Field(
        default=0, ge=0, description="steps by which the generating policy may be older than the trained one; 0: on-policy"
    )
    chunk: int | None = Field(
        default=None,
        ge=1,
        description="answers that are generated and stored together, and generated again after a kill; unset: a group",
    )

    keep_steps: int = Field(
        default=1000, ge=0, description="steps whose answers stay in the ledger; older ones that no checkpoint needs are removed"
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="processes per node that generate answers, each with the whole model; with max_staleness while ranks"
        " train; 0: ranks generate",
    )
    engine: str = Field(default="transformers", description="engine of the workers: transformers, or an entry point's")

    @model_validator(mode="after")
    def _engine_of_workers(self) -> Self:
        if self.engine != "transformers" and not self.workers:
            raise ValueError(f"engine: {self.engine} runs only in workers; set workers to 1 or more")
        return self

    @property
    def own_code(self) -> bool:
        """True if a reward is a function of the user's own."""
        return any(":" in reward.name for reward in self.rewards)

    @property
    def keys(self) -> LossKeys:
        """The variant's components, overridden by the keys that are set."""
        variant = VARIANTS[self.variant]
        return variant._replace(**{name: value for name in variant._fields if (value := getattr(self, name)) is not None})

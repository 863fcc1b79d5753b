"""Keys of the optimizer and its learning rate."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.section import Section, default_text

WARMUP_STEPS, WARMUP_SHARE = 20, 10  # the default warm-up: so many steps, or 1/10 of all if that is fewer


class OptimConfig(Section):
    """The optimizer and its learning rate."""

    name: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: orthogonalized updates of the matrices of the layers (Muon, arXiv 2502.16982), scaled so that lr is"
        " AdamW's, and AdamW for embeddings, head, norms and vectors",
    )
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.1, ge=0, description="decay of weights with two or more dimensions")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="decay rates of Adam's two moments")
    eps: float = Field(default=1e-8, gt=0, description="epsilon added to Adam's denominator")
    grad_clip: float = Field(default=1.0, ge=0, description="clip gradients to this norm; 0 disables")
    warmup_steps: int = Field(
        default=WARMUP_STEPS,
        ge=0,
        description="steps of linear warm-up, fewer than all",
        json_schema_extra=default_text(f"{WARMUP_STEPS}, or steps/{WARMUP_SHARE} if that is fewer"),
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        default="cosine", description="learning rate schedule after the warm-up"
    )
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="final learning rate, as a fraction of the peak")
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="wsd: fraction of all steps that decay at the end")
    base_width: int | None = Field(
        default=None,
        ge=1,
        description="hidden size at which lr was tuned: the rate of the head and of the layers' matrices is multiplied by"
        " base_width / hidden size (muon: layers by its square root), so that lr suits other widths (arXiv 2203.03466,"
        " 2407.05872); unset: the same rate for all",
    )
    layer_decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="factor of the learning rate from each layer to the one below; unset: the same rate for all layers",
    )

    @model_validator(mode="after")
    def _betas(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must lie in 0..1")
        return self


def warmup_problem(optim: OptimConfig, steps: int) -> str:
    """Return a message if the learning rate rises over the whole run and never reaches its peak, else an empty string."""
    if optim.warmup_steps < steps or "warmup_steps" not in optim.model_fields_set:
        return ""
    return (
        f"optim.warmup_steps: {optim.warmup_steps} is not below steps, {steps}, so that the learning rate would never reach"
        f" optim.lr; set at most {steps - 1}, or remove it for {min(WARMUP_STEPS, steps // WARMUP_SHARE)}"
    )

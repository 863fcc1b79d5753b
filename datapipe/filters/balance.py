"""The key `balance`: how much of the training text comes from each source, or is in each language."""

from typing import Literal

from pydantic import Field, model_validator

from ropewalk.cluster.config import Section


class Balance(Section):
    """Re-weight sources or languages: of one that is to weigh more documents are repeated, of others some are left out."""

    by: Literal["source", "language"] = Field(
        default="source", description="what is balanced: sources, or languages as py3langid tells them (`und`: none)"
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="{SOURCE or LANGUAGE: share of the training text}; those that are not named share the rest as they are",
    )
    temperature: float = Field(
        default=1, gt=0, le=1, description="shares follow size^temperature: 1 leaves them, towards 0 all sources weigh the same"
    )
    max_epochs: float = Field(
        default=4, ge=1, le=10_000, description="the most that a source is repeated; what is missing then is missing"
    )

    @model_validator(mode="after")
    def _shares(self) -> "Balance":
        if any(weight < 0 for weight in self.weights.values()) or sum(self.weights.values()) > 1 + 1e-9:
            raise ValueError(f"weights are shares: none below 0, at most 1 in all; they are {self.weights}")
        if self.weights and self.temperature != 1:
            raise ValueError("set weights or temperature, not both")
        return self

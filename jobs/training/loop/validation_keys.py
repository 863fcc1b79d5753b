"""Configuration of validations: interval, size, early stopping."""

import math
from typing import Any

from pydantic import Field

from ropewalk.cluster.section import Section, default_text

VALIDATIONS = 20  # per run of a job that adapts a model, unless configured
PATIENCE = 3
LEAST_VALIDATED, MOST_VALIDATED = 16, 256  # samples per validation
HALF = f"half of the samples between two validations, {LEAST_VALIDATED} to {MOST_VALIDATED}"
TRAINED_PER_VALIDATED = 2  # training samples per validated sample, unless that gives fewer than LEAST_VALIDATED


def validation_schedule(steps: int, samples: int, every: int | None, validations: int, most: int) -> dict[str, int]:
    """Choose the validation interval and size, so that a short run does not spend its time on validation."""
    needed = math.ceil(TRAINED_PER_VALIDATED * LEAST_VALIDATED / samples)
    every = every or max(1, steps // validations, min(needed, steps // 4))
    return {"every_steps": every, "max_sequences": min(most, max(LEAST_VALIDATED, every * samples // TRAINED_PER_VALIDATED))}


def interval(default: str | None = None) -> Any:
    """Return the key for the steps between two validations. `default`: its default in words, if it depends on other keys."""
    description = "steps between two validations; the last step is always validated"
    return Field(default=100, ge=1, description=description, json_schema_extra=default_text(default) if default else None)


def size(default: str | None = None, scored: str = "sequences") -> Any:
    """Return the key for the size of a validation. `default`: its default in words, if it depends on other keys."""
    description = f"maximum {scored} of the validation split to score"
    return Field(
        default=MOST_VALIDATED, ge=1, description=description, json_schema_extra=default_text(default) if default else None
    )


class ValidationConfig(Section):
    """Validation interval, size, and early stopping."""

    every_steps: int = interval()
    max_sequences: int = size()
    patience: int | None = Field(default=None, ge=1, description="stop after this many validations without a lower loss")
    keep_best: bool = Field(
        default=False, description="save a checkpoint after the best validation so far, and keep it for export --best"
    )


class AdaptationValidationConfig(ValidationConfig):
    """Validation of a job that adapts a trained model: it keeps the best checkpoint, and stops a run that overfits."""

    every_steps: int = interval(f"for {VALIDATIONS} validations per run")
    max_sequences: int = size(HALF)
    patience: int | None = Field(
        default=PATIENCE, ge=1, description="stop after this many validations without a lower loss; null: no early stopping"
    )
    keep_best: bool = Field(
        default=True, description="save a checkpoint after the best validation so far, and keep it for export --best"
    )

"""Keys of the checks for silent corruption."""

from pydantic import Field

from ropewalk.cluster.section import Section


class IntegrityConfig(Section):
    """Checks for bits that change silently, in the state or in computations: a run goes back to a state that passed them."""

    every_steps: int = Field(
        default=50,
        ge=1,
        description="steps between two checks: copies of the model (parallel.replicate) are compared, and copies in memory"
        " verified; the state is also checked before it is saved",
    )
    at_rest: bool = Field(
        default=True,
        description="hash weights and optimizer state after each update and before the next one, so that bits that change in"
        " between are found at once, also without copies of the model",
    )

"""Keys of a search for drift; light, as other jobs hold them among their own."""

from typing import Annotated

from pydantic import AfterValidator, Field

from ropewalk.cluster.config import Section, absolute


class DriftConfig(Section):
    """How two samples of texts are compared."""

    alpha: float = Field(
        default=0.05, gt=0, lt=0.5, description="the rate of false alarms that is allowed, of all tests together"
    )
    texts: int = Field(default=1000, ge=50, le=20_000, description="texts of each side that are compared, drawn by the seed")
    permutations: int = Field(default=1999, ge=199, description="at most so many arrangements a test; a clear case needs fewer")
    rounds: int = Field(
        default=100, ge=0, description="disjoint halves of the reference by which false alarms are measured; 0: not measured"
    )
    power: float = Field(default=0.9, gt=0, lt=1, description="with which the smallest share of drift must be found")
    embedding: Annotated[str, AfterValidator(absolute)] | None = Field(
        default=None,
        description="directory of a static model of model2vec (needs ropewalk[drift]); unset: hashed n-grams, which need nothing",
    )
    seed: int = Field(default=0, ge=0, description="what is drawn by chance is drawn by this")

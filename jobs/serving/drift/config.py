"""Configuration keys of drift detection. Imports nothing heavy: other jobs embed these keys."""

from pydantic import Field

from ropewalk.cluster.input_paths import ModelPath
from ropewalk.cluster.section import Section


class DriftConfig(Section):
    """Settings for comparing two samples of texts."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5, description="allowed false-alarm rate of all tests together")
    texts: int = Field(default=1000, ge=50, le=20_000, description="number of texts compared per side, drawn at random")
    permutations: int = Field(default=1999, ge=199, description="most permutations per test; clear cases stop earlier")
    rounds: int = Field(
        default=100, ge=0, description="random splits of the reference used to measure false alarms; 0: do not measure"
    )
    power: float = Field(default=0.9, gt=0, lt=1, description="power required of the smallest detectable share of drift")
    embedding: ModelPath | None = Field(
        default=None,
        description="directory of a model2vec static model (needs ropewalk[drift]); unset: hashed n-grams",
    )
    seed: int = Field(default=0, ge=0, description="random seed")

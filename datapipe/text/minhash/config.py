"""The keys of near-duplicates. It is light, as the command line reads it."""

from pydantic import Field

from ropewalk.cluster.config import Section


class NearDuplicates(Section):
    """Documents that share most n-grams of words: candidates by MinHash, each pair verified by its Jaccard similarity."""

    ngram: int = Field(default=5, ge=1, le=64, description="words in a shingle; letters and digits in lower case count")
    bands: int = Field(default=14, ge=1, le=256, description="bands of MinHash values; two documents equal in one are candidates")
    rows: int = Field(default=8, ge=1, le=64, description="MinHash values in a band")
    similarity: float = Field(
        default=0.8, gt=0, le=1, description="least Jaccard similarity of two documents' shingles for them to count as duplicates"
    )

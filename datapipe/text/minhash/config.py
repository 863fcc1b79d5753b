"""The key `near_duplicates` of a job file."""

from pydantic import Field

from ropewalk.cluster.section import Section


class NearDuplicates(Section):
    """Near-duplicate search: MinHash finds candidates, each pair is verified by its Jaccard similarity."""

    ngram: int = Field(default=5, ge=1, le=64, description="words in a shingle; only letters and digits count, in lower case")
    bands: int = Field(
        default=14, ge=1, le=256, description="bands of MinHash values; documents that agree in a band are candidates"
    )
    rows: int = Field(default=8, ge=1, le=64, description="MinHash values per band")
    similarity: float = Field(
        default=0.8, gt=0, le=1, description="minimum Jaccard similarity of the shingles of two documents to count as duplicates"
    )

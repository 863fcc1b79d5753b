"""Compile the kernels of the data path by a data set with all stages, so that tests find them in the cache.

Usage: python -m tests.compiled
"""

import tempfile
from pathlib import Path
from typing import Any

from tests.fakes.documents import make, write_lines
from tests.fakes.near import planted
from tests.fakes.plain_rules import PLAIN, without

STAGES: dict[str, Any] = {
    "near_duplicates": {},
    "paragraphs": {},
    "language": {"min_confidence": 0},
    "filters": [{name: {**without(name), **({"words": "tokens"} if name == "fineweb" else {})}} for name in PLAIN],
    "pii": {},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        documents = planted(5, 10)
        source = write_lines(Path(folder) / "in.jsonl", documents)
        item = {"question": " ".join(documents[0]["text"].split()[:30])}
        against = str(write_lines(Path(folder) / "items.jsonl", [item]))
        make(source, Path(folder) / "out", **STAGES, decontaminate={"against": [against]})


if __name__ == "__main__":
    main()

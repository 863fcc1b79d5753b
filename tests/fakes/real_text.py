"""Real documents for comparisons: the corpus ($ROPEWALK_CORPUS, or beside the repository), else the sources of Python."""

import io
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import orjson
import zstandard

REPOSITORY = Path(__file__).resolve().parents[2]


def corpus_file() -> Path | None:
    """The corpus, a .jsonl.zst, where there is one."""
    named = os.environ.get("ROPEWALK_CORPUS")
    places = [Path(named)] if named else [REPOSITORY.parent / "shared/data/corpus.jsonl.zst"]
    return next((path for path in places if path.is_file()), None)


def real_texts() -> Iterator[str]:
    """The texts of the corpus, else of the standard library."""
    path = corpus_file()
    if path is None:
        for source in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            yield source.read_text(errors="replace")
        return
    with path.open("rb") as packed:
        for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed)):
            yield orjson.loads(line)["text"]

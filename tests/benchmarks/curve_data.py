"""The two data sets of the recorded curves: the quick start's sources, and the documentation in them."""

import ast
import glob
import json
from collections.abc import Iterator
from pathlib import Path

from ropewalk.jobs.cli.quickstart import corpus
from tests.benchmarks.swept import run_job

DATA = ("code", "prose")
VOCABULARY = 1024
MIN_CHARACTERS = 200


def make_data(folder: Path) -> None:
    """Make the two data sets: the quick start's sources, and the documentation strings in them."""
    for name, files in (("code", corpus()), ("prose", [str(folder / "prose.jsonl")])):
        if not (folder / name / "manifest.json").is_file():
            if name == "prose":
                write_prose(folder / "prose.jsonl")
            tokenizer = {"train": VOCABULARY, "sample_mib": 6}
            keys = {"validation_fraction": 0.04, "min_chars": MIN_CHARACTERS, "tokenizer": tokenizer}
            run_job("preprocess", {"input": files, "output": str(folder / name), **keys})


def write_prose(file: Path) -> None:
    """Write the documentation in the quick start's sources."""
    paths = sorted(path for pattern in corpus() for path in glob.glob(pattern, recursive=True))
    with file.open("w") as lines:
        for text in (text for path in paths for text in prose_of(Path(path))):
            lines.write(json.dumps({"text": text}) + "\n")


def prose_of(path: Path) -> Iterator[str]:
    """Yield the documentation strings of a module, and the texts in its mappings, as `pydoc_data` has them."""
    for node in ast.walk(ast.parse(path.read_text())):
        texts: list[str | None] = []
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            texts = [ast.get_docstring(node)]
        elif isinstance(node, ast.Dict):
            texts = [v.value for v in node.values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
        yield from (text for text in texts if text and len(text) >= MIN_CHARACTERS)

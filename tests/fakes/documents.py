"""Raw documents for the tests of the data path, and a data set made of them without Ray."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest
from ropewalk.datapipe.passes.pipeline import make_data_set
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.worker import Task, Worker
from ropewalk.datapipe.report.page import PAGE
from ropewalk.jobs.models.cards.write import CROISSANT, DATA_CARD
from ropewalk.jobs.preprocess.config import PreprocessConfig

SENTENCE = "the of lane rope strand twist naïve walk Größe hemp 麻绳 tar 2026 shard, token. (seed) def return λ x: 🪢 it's"
WORDS = [*SENTENCE.split(), "rank\n\n"]
TINY = {"tokenizer": {"train": 400, "sample_mib": 1}, "validation_fraction": 0.1}


def some_documents(count: int, seed: int = 0, num_words: int = 60) -> list[dict[str, Any]]:
    """Documents of random words; every eleventh repeats an earlier text."""
    draw = random.Random(seed)
    created: list[dict[str, Any]] = []
    for number in range(count):
        text = " ".join(draw.choices(WORDS, k=draw.randint(3, 2 * num_words)))
        if number % 11 == 10:
            text = created[number // 2]["text"]
        created.append({"id": f"doc-{seed}-{number}", "text": text, "source": f"book-{number % 3}"})
    return created


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """JSON lines; bytes are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def configure(source: Any, output: Any, **keys: Any) -> PreprocessConfig:
    values = {
        **TINY,
        "input": [str(s) for s in source] if isinstance(source, list) else str(source),
        "output": str(output),
        **keys,
    }
    config = load_config(PreprocessConfig, values)
    assert isinstance(config, PreprocessConfig)
    return config


def in_this_process(config: PreprocessConfig) -> Any:
    """Carries tasks out one after another, here."""
    worker = Worker(config.output, f"{config.output}/.work")

    def run_tasks(tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        for task in tasks:
            yield task, worker.do(task)

    return run_tasks


def make(source: Any, output: Any, **keys: Any) -> Manifest:
    """A data set from `source`, made in this process."""
    config = configure(source, output, **keys)
    config.preflight()
    return make_data_set(config, config.seed, in_this_process(config), Progress(lambda _: None))


def contents(folder: Any) -> dict[str, bytes]:
    """Every file below a directory or URL, hidden ones too, but for cards and page, which have a date; the job writes them."""
    root = StoragePath(str(folder))
    results = {path.removeprefix(root.root).lstrip("/"): path for path in sorted(root.fs.find(root.root))}
    return {name: root.fs.cat_file(path) for name, path in results.items() if name not in (DATA_CARD, CROISSANT, PAGE)}


def rejected(output: Path, places: bool = False) -> list[dict[str, Any]]:
    """Records of dropped documents; with file and line if `places` is set."""
    listed = [json.loads(line) for file in sorted(output.glob("rejected/*.jsonl")) for line in file.read_text().splitlines()]
    return listed if places else [{k: v for k, v in record.items() if k not in {"file", "line"}} for record in listed]


def rows(output: Path, split: str = "*") -> list[dict[str, Any]]:
    """The documents of all shards as Python values; train before validation."""
    files = sorted(output.glob("shards/*.arrow")) + sorted(output.glob("validation/*.arrow"))
    return [row for file in files for row in pa.ipc.open_file(file.read_bytes()).read_all().to_pylist()]


def text_of(output: Path) -> dict[str, str]:
    """The text of every document of a data set, by its id, decoded from its tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(output / "tokenizer/tokenizer.json"))
    return {row["id"]: tokenizer.decode(row["tokens"][:-1]) for row in rows(output)}


def made_with_kills(config: PreprocessConfig) -> int:
    """Make a data set with a kill after every task of a stage, the last task of each first; how many kills there were."""
    carried: list[str] = []

    def dies(tasks: Sequence[Task]) -> Any:
        for task, result in in_this_process(config)(list(reversed(tasks))):
            carried.append(task.label)
            if task.method == "stage":
                raise KeyboardInterrupt
            yield task, result

    kills = 0
    while not StoragePath(config.output).exists("manifest.json"):
        try:
            make_data_set(config, config.seed, dies, Progress(lambda _: None))
        except KeyboardInterrupt:
            kills += 1
    assert len(set(carried)) == len(carried), "no task was done twice"
    return kills

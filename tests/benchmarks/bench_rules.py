"""The quality rules, MinHash and a whole pipeline against datatrove's; memory of near-duplicates as they grow.

    python -m tests.benchmarks.bench_rules [--megabytes 4] [--signatures 100000,1000000] [--spacy DIR] [--whole 16]

Rates are MB a CPU-second. `--whole N`: of the pipeline, which ends in tokens, N MB go through ours and the first --megabytes of
them through datatrove's, which takes as long for each.

datatrove gets an environment of its own under build/, or the one of $ROPEWALK_DATATROVE (its python). `--spacy`: a directory with
spacy, to compare with datatrove's default words too. The corpus: $ROPEWALK_CORPUS, else as for bench_preprocess. `--signatures
1000000,100000000` is the long run: 17 GB of disk.

Measured: 2026-11-28, a quiet machine, datatrove 0.10.1, 2.5 MB through its filters and 64 MB through ours. A second run: 21.6
against 0.21 with default words, 43.9 against 1.27 with white space words (35 times), MinHash 35.2 against 0.42. Decisions
that differ with white space words are of symbols that datatrove's list lacks. The whole pipeline has Gopher's and FineWeb's
filters, e-mails and addresses, near-duplicates and the same tokenizer. Near-duplicates ran beside two other programs: 290,000
to 330,000 documents a CPU-second on a quiet machine; the disk holds 0.46, 0.49 and 0.50 of the signatures' 448 bytes at 10^6,
10^7 and 10^8.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import takewhile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.near.search import NearUnit, find_near_duplicates
from ropewalk.datapipe.filters.registry import make_filter
from ropewalk.datapipe.passes.pipeline import make_data_set
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.worker import Task, Worker
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.datapipe.text.minhash.bands import write_bands
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.tokens.tokenizer import train_tokenizer
from tests.datapipe.test_decontamination import some_items
from tests.fakes.documents import configure, in_this_process, make, rejected
from tests.fakes.real_text import real_texts

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).parent / "peer_datatrove.py"
NAMES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
BATCH = 500


def datatrove() -> str:
    """The python of an environment with datatrove; it is made where there is none."""
    if named := os.environ.get("ROPEWALK_DATATROVE"):
        return named
    folder = ROOT / "build/datatrove"
    if not (folder / "bin/datatrove").exists() and not list(folder.glob("lib/*/site-packages/datatrove")):
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [
            str(folder / "bin/python"),
            "-m",
            "pip",
            "install",
            "-q",
            "datatrove[io,processing]==0.10.1",
            "orjson",
            "xxhash",
        ]
        subprocess.run(install, check=True)
    return str(folder / "bin/python")


def peer(*arguments: str, spacy: str | None = None) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if spacy:
        env["PYTHONPATH"] = spacy
    command = [datatrove(), str(PEER), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"datatrove failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def some_of_the_corpus(megabytes: float, path: Path) -> list[str]:
    """Texts of so many megabytes, also as JSON lines."""
    held = 0.0

    def more(text: str) -> bool:
        nonlocal held
        held += len(text) / 1e6
        return held <= megabytes

    texts = list(takewhile(more, real_texts()))
    path.write_text("".join(f"{json.dumps({'id': str(n), 'text': text})}\n" for n, text in enumerate(texts)))
    return texts


def our_rules(texts: list[str], word_rule: str = "white_space") -> tuple[dict[str, float], dict[str, dict[str, str | None]]]:
    """CPU seconds of each filter, words and lines with the first that needs them; and the decisions."""
    warm = DocumentBatch.of_texts(["warm up"])
    filters = {name: make_filter(name, {} if name == "c4" else {"words": word_rule}) for name in NAMES}
    for rule in filters.values():
        rule.judge(warm)
    seconds: dict[str, float] = {}
    decisions: dict[str, dict[str, str | None]] = {}
    batches = [DocumentBatch.of_texts(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
    for name, rule in filters.items():
        began = time.process_time()
        verdicts = [rule.judge(batch) for batch in batches]
        seconds[name] = time.process_time() - began
        reasons = [verdict.reasons[code - 1] if code else None for verdict in verdicts for code in verdict.codes.tolist()]
        decisions[name] = {str(n): reason for n, reason in enumerate(reasons)}
    return seconds, decisions


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The share of documents that both keep or both drop, and how often which reason stands against which."""
    table: dict[str, Any] = {}
    for name in NAMES:
        pairs = [(ours[name][key], theirs[name][key]) for key in ours[name]]
        differ = Counter(f"{a or 'kept'} | {b or 'kept'}" for a, b in pairs if (a is None) != (b is None))
        table[name] = {"equal": round(1 - sum(differ.values()) / len(pairs), 4), "differ": dict(differ.most_common(6))}
    everything = [all(ours[n][k] is None for n in NAMES) == all(theirs[n][k] is None for n in NAMES) for k in ours[NAMES[0]]]
    table["all four"] = round(float(np.mean(everything)), 4)
    return table


def bench_rules(texts: list[str], path: Path, spacy: str | None) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds, ours = our_rules(texts)
    theirs = peer("rules", str(path))
    three = NAMES[:3]
    rates = [size / sum(item[name] for name in three) for item in (seconds, theirs["cpu_seconds"])]
    result = {
        "documents": len(texts),
        "MB": round(size, 2),
        "three filters, MB/CPU-s": round(rates[0], 1),
        "datatrove, white space words": round(rates[1], 3),
        "times": round(rates[0] / rates[1], 1),
        "ours by filter, MB/CPU-s": {name: round(size / seconds[name], 1) for name in NAMES},
        "decisions, white space words": compare(ours, theirs["decisions"]),
    }
    if spacy:
        default = peer("rules", str(path), "--words", "spacy", spacy=spacy)
        seconds, ours = our_rules(texts, "tokens")
        rates = [size / sum(item[name] for name in three) for item in (seconds, default["cpu_seconds"])]
        result["three filters, words: tokens, MB/CPU-s"] = round(rates[0], 1)
        result |= {
            "datatrove, its default words (spacy)": round(rates[1], 3),
            "times, default words": round(rates[0] / rates[1], 1),
        }
        result["decisions, default words"] = compare(ours, default["decisions"])
    return result


class _NoTokenizerError(Exception):
    """The data set needs its tokenizer, and what is measured is over."""


def our_minhash(path: Path, folder: Path) -> tuple[float, set[str]]:
    """CPU seconds from JSON lines to decisions and texts on disk, exact duplicates too; ids that are dropped."""
    config = configure(path, folder / "out", near_duplicates={"similarity": 0.7}, validation_fraction=0)
    run = in_this_process(config)

    def until_tokens(tasks: Any) -> Any:
        if tasks and tasks[0].method == "train":
            raise _NoTokenizerError
        yield from run(tasks)

    began = time.process_time()
    try:
        make_data_set(config, config.seed, until_tokens, Progress(lambda _: None))
    except _NoTokenizerError:
        seconds = time.process_time() - began
    make_data_set(config, config.seed, in_this_process(config), Progress(lambda _: None))
    return seconds, {line["id"] for line in rejected(folder / "out")}


def bench_minhash(texts: list[str], path: Path, folder: Path, spacy: str | None) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in texts) / 1e6
    (folder / "warm").mkdir()
    (folder / "warm.jsonl").write_text("".join(f'{{"text": "a b c d e f {n}"}}\n' for n in range(9)))
    our_minhash(folder / "warm.jsonl", folder / "warm")
    seconds, dropped = our_minhash(path, folder)
    theirs = peer("minhash", str(path), str(folder / "datatrove"))
    stays = set(theirs["stays"])
    gone = {str(n) for n in range(len(texts))} - stays
    default = {}
    if spacy:
        result = peer("minhash", str(path), str(folder / "default"), "--words", "spacy", spacy=spacy)["cpu_seconds"]
        default = {
            "datatrove, default words (spacy)": round(size / result, 3),
            "times, default words": round(result / seconds, 1),
        }
    return {
        "whole job, MB/CPU-s": round(size / seconds, 1),
        "datatrove's four stages, white space words": round(size / theirs["cpu_seconds"], 3),
        "times": round(theirs["cpu_seconds"] / seconds, 1),
        **default,
        "CPU-hours for 1 TB": round(1e6 / (size / seconds) / 3600, 1),
        "dropped": len(dropped),
        "datatrove drops": len(gone),
        "both": len(dropped & gone),
    }


def bench_whole(texts: list[str], path: Path, megabytes: float, folder: Path, spacy: str | None) -> dict[str, Any]:
    """Raw lines to tokens: Gopher's and FineWeb's filters, e-mails and addresses, near-duplicates, the same tokenizer.

    Then ours with all that it has besides: languages, evaluation items, other personal data. It pays for its fixed costs too.
    """
    more = folder / "more" / "part.jsonl"
    more.parent.mkdir()
    many = sum(len(text.encode()) for text in some_of_the_corpus(megabytes, more)) / 1e6
    files = train_tokenizer(texts, 32_000)
    (folder / "tokenizer").mkdir()
    for name, data in files.files.items():
        (folder / "tokenizer" / name).write_bytes(data)
    evaluation = folder / "items.jsonl"
    evaluation.write_text("".join(json.dumps({"question": item}) + "\n" for item in some_items(1000)))
    same = {"near_duplicates": {}, "pii": {"replace": ["email", "ip"]}}
    language = {"keep": [], "min_confidence": 0, "code": False}
    everything = {"near_duplicates": {}, "pii": {}, "language": language, "decontaminate": {"against": [str(evaluation)]}}
    size = sum(len(text.encode()) for text in texts) / 1e6
    results: dict[str, float] = {}
    for word_rule, library in (("white_space", "white"), ("tokens", "spacy")):
        if library == "spacy" and not spacy:
            continue
        tokenizer = ("--tokenizer", str(folder / "tokenizer/tokenizer.json"))
        figures = peer("whole", str(path), str(folder / library), "--words", library, *tokenizer, spacy=spacy)
        results[f"datatrove, {library}"] = size / figures["cpu_seconds"]
        filters = [{name: {"words": word_rule}} for name in ("gopher_quality", "gopher_repetition", "fineweb")]
        for stages, keys in (("the same stages", same), ("all stages", everything)):
            for backend in ("tokenizers", "fastokens"):
                name = f"{word_rule}, {stages}, {backend}"
                choice = {"path": str(folder / "tokenizer"), "backend": backend}
                make(path, folder / f"warm {name}", tokenizer=choice, filters=filters, **keys)
                began = time.process_time()
                make(more, folder / name, tokenizer=choice, filters=filters, **keys)
                results[name] = many / (time.process_time() - began)
                results[f"times, {name}"] = results[name] / results[f"datatrove, {library}"]
    return {name: round(value, 3) for name, value in results.items()}


def synthetic(work: StoragePath, documents: int, options: NearDuplicates) -> list[NearUnit]:
    """Band keys of documents of which every fifth shares half its bands with an earlier one, 100,000 to a unit."""
    units = []
    for number, first in enumerate(range(0, documents, 100_000)):
        count = min(100_000, documents - first)
        draw = np.random.default_rng(number)
        keys = draw.integers(1, 2**64, (count, options.bands), dtype=np.uint64) | np.uint64(1)
        copies = np.arange(4, count, 5)
        keys[copies, : options.bands // 2] = keys[copies - 4, : options.bands // 2]
        if number:
            earlier = np.random.default_rng(number - 1).integers(1, 2**64, (count, options.bands), dtype=np.uint64) | np.uint64(1)
            keys[0::50, : options.bands // 2] = earlier[0::50, : options.bands // 2]
        write_bands(work, number, keys)
        units.append(NearUnit(index=number, blocks=(count,), texts=""))
    return units


def peak_kib() -> int:
    """The most memory that this process has had."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])


def do(name: str, task: Any) -> dict[str, Any]:
    """Do a task of near-duplicates, in a process of its own."""
    result: dict[str, Any] = Worker(name, name).do(Task(method="stage", label=task.name, arguments=(task,)))
    return result


def _none(rows: slice) -> NDArray[np.bool_]:
    return np.zeros(rows.stop - rows.start, np.bool_)


def bench_memory(documents: int) -> dict[str, Any]:
    """Candidates and clusters of synthetic signatures, up to where texts would be read: memory, disk and CPU seconds."""
    options, spawn = NearDuplicates(), get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-rules-") as name, ProcessPoolExecutor(1, spawn) as worker:
        work = StoragePath(name)
        units = synthetic(work, documents, options)
        Path("/proc/self/clear_refs").write_text("5")  # the driver's peak is counted from here on

        def run(_: str, tasks: Any) -> Any:
            for task in tasks:
                if task.name.startswith("gather"):
                    raise _NoTokenizerError
                yield task, worker.submit(do, name, task).result()

        with suppress(_NoTokenizerError):
            find_near_duplicates(units, options, dropped=_none, total_bytes=documents * 1000, work=work, run=run)
        disk = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
        seconds = worker.submit(time.process_time).result()
        return {
            "documents": documents,
            "a worker's MiB at most": worker.submit(peak_kib).result() >> 10,
            "the driver's": peak_kib() >> 10,
            "disk, of 448 bytes a signature": round(disk / (448 * documents), 3),
            "documents/CPU-s": round(documents / seconds),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--signatures", default="100000,1000000")
    parser.add_argument("--spacy", help="a directory with spacy for datatrove")
    parser.add_argument("--whole", type=float, default=16, help="megabytes of the whole pipeline; 0: without it")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(bench_memory(options.memory_of)))
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-rules-") as name:
        path = Path(name) / "in/part.jsonl"
        path.parent.mkdir()
        if options.megabytes:
            texts = some_of_the_corpus(options.megabytes, path)
            result["rules"] = bench_rules(texts, path, options.spacy)
            result["minhash"] = bench_minhash(texts, path, Path(name), options.spacy)
            if options.whole:
                (whole := Path(name) / "whole").mkdir()
                result["whole pipeline, MB/CPU-s"] = bench_whole(texts, path, options.whole, whole, options.spacy)
    result["memory"] = []
    for documents in filter(None, options.signatures.split(",")):
        command = [sys.executable, "-m", "tests.benchmarks.bench_rules", "--memory-of", documents]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        result["memory"].append(json.loads(done.stdout))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

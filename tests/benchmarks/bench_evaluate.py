"""Six real tasks on a real model, beside lm-eval's own model of transformers: every decision, and CPU seconds of both.

    python -m tests.benchmarks.bench_evaluate [--items 15] [--tasks boolq,piqa] [--fewshot 0] [--peer-batch 1] [--tiny]

One JSON object. Both compute on one thread, in float32, in this process, task by task; tokenizing is in both figures, loading
is in none. `--tiny` takes a tiny model and made-up tasks instead, to see that the benchmark itself works.

Measured: 2026-11-26 to 28, a busy machine, SmolLM2-135M, batch 1 in lm-eval, one thread, every item: 9,377. With two options
both compute the context once, and ours leaves out the head. With five examples before each item (10 items of each task) no
decision differs; both together are 4.8 times faster.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SMALL_GAP = 0.05  # nats: a decision of the peer's that is nearer to a tie than this may be turned by rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=15, help="of each task")
    parser.add_argument("--peer-batch", type=int, default=1, help="the peer's batch size; padding gains nothing on a CPU")
    parser.add_argument("--fewshot", type=int, default=0, choices=range(6), help="examples before each item, always the same")
    parser.add_argument("--tasks", default="", help="only these of the six")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), options), indent=1))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from ropewalk.cluster.run.context import JobContext
    from ropewalk.cluster.run.directory import RunDir
    from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
    from ropewalk.jobs.evaluation.evaluate.lm_eval_model import RopewalkModel
    from ropewalk.jobs.evaluation.evaluate.team import Team
    from ropewalk.jobs.evaluation.tasks.load import load_tasks
    from ropewalk.jobs.inference.scoring.generate import Writer
    from ropewalk.jobs.inference.scoring.open_model import open_model
    from ropewalk.jobs.inference.scoring.scorer import Scorer
    from ropewalk.sharding.group import process_group

    torch.set_num_threads(1)
    model, files = _material(folder, arguments)
    config = EvaluateConfig(model=str(model), tasks=[str(file) for file in files])
    tasks = load_tasks(config)
    run = RunDir.create("bench", {"job": "evaluate", "config": {}}, folder / "runs")
    context = JobContext(run=run, attempt=run.begin_attempt())
    rows: dict[str, dict[str, Any]] = {}
    with process_group() as group:
        opened = open_model(str(model))
        ours = RopewalkModel(opened, Team(context, group, Scorer(opened), Writer(opened)), seed=0)
        peer = _peer(opened, arguments.peer_batch)
        with torch.no_grad():  # weights are read from the disk by the first pass
            opened.model(torch.arange(200)[None] % opened.model.config.vocab_size)
        for name, task in tasks.items():
            task.set_config(key="num_fewshot", value=arguments.fewshot)
            task.build_all_requests(limit=arguments.items, rank=0, world_size=1)
            mine, spent = _timed(ours.loglikelihood, task.instances)
            theirs, spent_by_peer = _timed(lambda requested: peer.loglikelihood(requested, disable_tqdm=True), task.instances)
            rows[name] = {**_decisions(task.instances, mine, theirs), "cpu_s": spent, "peer_cpu_s": spent_by_peer}
            rows[name]["peer_over_ours"] = round(spent_by_peer / spent, 2)
            rows[name]["near_ties"] = sum(task == name for task, _ in ours.near_ties)
    return {
        "model": model.name,
        "threads": 1,
        "fewshot": arguments.fewshot,
        "peer": f"lm-eval HFLM, batch {arguments.peer_batch}",
        **_totals(rows),
        "tasks": rows,
    }


def _material(folder: Path, arguments: argparse.Namespace) -> tuple[Path, list[Path]]:
    if arguments.tiny:
        from tests.jobs.evaluation.evaluate.tasks import choice_task
        from tests.jobs.tiny import tiny_model

        return tiny_model(folder / "model"), [choice_task(folder, arguments.items, n, f"of_{n}") for n in (2, 4)]
    from tests.real_data import smollm2
    from tests.real_tasks import write_real_tasks

    names = set(arguments.tasks.split(",")) - {""}
    return smollm2(), [file for file in write_real_tasks(folder, arguments.items) if not names or file.stem in names]


def _peer(opened: Any, batch: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=opened.model, tokenizer=opened.tokenizer, batch_size=batch)


def _timed(ask: Any, instances: list[Any]) -> tuple[list[tuple[float, bool]], float]:
    begin = time.process_time()
    answers = ask(instances)
    return answers, round(time.process_time() - begin, 2)


def _decisions(instances: list[Any], mine: list[Any], theirs: list[Any]) -> dict[str, Any]:
    """Items and options; decisions (the likeliest, by itself and by length; greedy or not) that differ, and those near a tie."""
    items: dict[int, list[int]] = {}
    for position, instance in enumerate(instances):
        items.setdefault(instance.doc_id, []).append(position)
    differ = ties = 0
    for places in items.values():
        lengths = np.array([len(instances[location].args[1].lstrip()) for location in places])
        for by in (np.ones(len(places)), lengths):
            first, two = (np.array([answers[location][0] for location in places]) / by for answers in (mine, theirs))
            gap = np.diff(np.sort(two))[-1] * by.max()
            ties += gap < SMALL_GAP
            differ += first.argmax() != two.argmax()
        differ += [mine[location][1] for location in places] != [theirs[location][1] for location in places]
    gaps = [abs(answer[0] - two[0]) for answer, two in zip(mine, theirs, strict=True)]
    return {
        "items": len(items),
        "options": round(len(instances) / len(items), 1),
        "decisions_that_differ": int(differ),
        "decisions_near_a_tie": int(ties),
        "largest_difference_nats": float(f"{max(gaps):.2g}"),
    }


def _totals(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def ratio(chosen: list[dict[str, Any]]) -> float:
        spent = sum(row["cpu_s"] for row in chosen)
        return round(sum(row["peer_cpu_s"] for row in chosen) / spent, 2) if spent else 0.0

    few = [row for row in rows.values() if row["options"] < 3]
    many = [row for row in rows.values() if row["options"] > 3.5]
    differ = sum(row["decisions_that_differ"] for row in rows.values())
    return {"decisions_that_differ": differ, "times_2_options": ratio(few), "times_4_or_5_options": ratio(many)}


if __name__ == "__main__":
    main()

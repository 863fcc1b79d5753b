"""Small tasks of each type, in lm-eval's YAML over local files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

WORDS = ("rope", "yarn", "hemp", "lane", "walk", "twist", "strand", "wheel", "hook", "tar")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_task(folder: Path, name: str, lines: list[dict[str, Any]], **keys: Any) -> Path:
    """A task's file, and its items beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / f"{name}.jsonl", lines)
    values = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        **keys,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def sentence(random: np.random.Generator, low: int, high: int) -> str:
    return " ".join(random.choice(WORDS, size=random.integers(low, high)))


def choice_task(folder: Path, number: int, options: int = 4, name: str = "choice", seed: int = 0, **keys: Any) -> Path:
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(number):
        choices = [sentence(random, 1, 4) for _ in range(options)]
        lines.append({"question": sentence(random, 2, 9), "choices": choices, "answer": int(random.integers(options))})
    metrics = [{"metric": name} for name in ("acc", "acc_norm")]
    report = {"doc_to_text": "Q: {{question}}\nA:", "doc_to_choice": "choices", "doc_to_target": "answer", "metric_list": metrics}
    return write_task(folder, name, lines, output_type="multiple_choice", **{**report, **keys})


def likelihood_task(folder: Path, number: int, name: str = "ending") -> Path:
    random = np.random.default_rng(1)
    lines = [{"text": sentence(random, 3, 9), "last": f" {random.choice(WORDS)}"} for _ in range(number)]
    metrics = [{"metric": "perplexity"}, {"metric": "acc"}]
    keys = {"doc_to_text": "{{text}}", "doc_to_target": "{{last}}", "target_delimiter": "", "metric_list": metrics}
    return write_task(folder, name, lines, output_type="loglikelihood", **keys)


def rolling_task(folder: Path, number: int, name: str = "texts", longest: int = 120) -> Path:
    random = np.random.default_rng(2)
    lines = [{"text": sentence(random, 3, longest)} for _ in range(number)]
    metrics = [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]
    return write_task(
        folder, name, lines, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="text", metric_list=metrics
    )


def writing_task(folder: Path, number: int, name: str = "writing", **generation: Any) -> Path:
    random = np.random.default_rng(3)
    lines = [{"question": sentence(random, 2, 6), "answer": str(random.choice(WORDS))} for _ in range(number)]
    kwargs = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False, **generation}
    keys = {"doc_to_text": "{{question}} =", "doc_to_target": "answer", "generation_kwargs": kwargs}
    return write_task(folder, name, lines, output_type="generate_until", **keys, metric_list=[{"metric": "exact_match"}])

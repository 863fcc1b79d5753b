"""Counterfactual pairs for `align`, made of templates: of two sentences that differ in a word, the likelier one is rejected.

The pairs are no suite's: a suite that a model was trained on measures nothing any more.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Likelihoods, Question
from ropewalk.jobs.evaluation.audit.config import CounterfactualConfig
from ropewalk.jobs.evaluation.audit.measures.stereotypes import shared_beginning
from ropewalk.jobs.evaluation.audit.suites.read import json_rows, read_text
from ropewalk.jobs.inference.scoring.encode import text_request
from ropewalk.jobs.inference.scoring.open_model import OpenModel

WHO, SLOT = "{WHO}", "{SLOT}"
OCCUPATIONS = (
    *("nurse", "engineer", "teacher", "mechanic", "secretary", "lawyer", "cleaner", "driver", "librarian", "carpenter"),
    *("designer", "manager", "baker", "farmer", "cashier", "chief", "writer", "guard", "tailor", "analyst"),
)
BUILT_IN: tuple[dict[str, Any], ...] = tuple(
    {"template": template, "slot": OCCUPATIONS, "swaps": [swap]}
    for template, swap in (
        ("After the meeting the {SLOT} said that {WHO} would come back tomorrow.", ("he", "she")),
        ("I called the {SLOT}, and {WHO} answered at once.", ("he", "she")),
        ("The {SLOT} went home early because {WHO} was tired.", ("he", "she")),
        ("Everybody thanked the {SLOT} for {WHO} patience.", ("his", "her")),
        ("The {SLOT} put {WHO} coat on the chair and began to work.", ("his", "her")),
    )
)


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """One sentence in two versions, cut where they begin to differ."""

    number: int
    prompt: str
    versions: tuple[str, str]


def read_templates(url: str | None) -> list[Counterpart]:
    """The sentences of all templates. Raises DataError for a line that is no template."""
    rows: list[tuple[str, Mapping[str, Any]]] = [("built-in template", row) for row in BUILT_IN]
    if url is not None:
        rows = [(where, row) for _, where, row in json_rows(read_text(url), url)]
    found: list[tuple[str, tuple[str, str]]] = []
    for where, row in rows:
        found += _filled(where, row)
    if not found:
        raise DataError(f"mitigation.counterfactual.templates: {url}: there is no template in it")
    return [Counterpart(number=number, prompt=p, versions=v) for number, (p, v) in enumerate(dict.fromkeys(found), 1)]


def _filled(where: str, row: Mapping[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    template, slots, swaps = row.get("template"), row.get("slot") or [""], row.get("swaps")
    if not isinstance(template, str) or template.count(WHO) != 1 or (SLOT in template) != bool(row.get("slot")):
        raise DataError(f"{where}: 'template' must have {WHO} once, and {SLOT} where `slot` has words for it; is {template!r}")
    ends = template.partition(WHO)
    if not re.search(r"\S\s$", ends[0]):
        raise DataError(f"{where}: {WHO} must stand behind a word and a space, so that there is a prompt; is {template!r}")
    texts = isinstance(slots, (list, tuple)) and all(isinstance(one, str) for one in slots)
    pairs = isinstance(swaps, (list, tuple)) and swaps and all(_is_swap(one) for one in swaps)
    if not texts or not pairs:
        raise DataError(
            f"{where}: 'slot' must be a list of words, 'swaps' a list of two words that are exchanged, such as [he, she]"
        )
    found = []
    for slot, (one, other) in product(slots, swaps or ()):
        prompt = ends[0].replace(SLOT, slot).rstrip()
        found.append((prompt, (f" {one}{ends[2].replace(SLOT, slot)}", f" {other}{ends[2].replace(SLOT, slot)}")))
    return found


def _is_swap(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(x, str) and x.strip() for x in value)
        and value[0] != value[1]
    )


class Counterfactual:
    """Each sentence in both versions; the model's own preference decides which one it shall unlearn."""

    def __init__(self, config: CounterfactualConfig) -> None:
        self.config, self.parts = config, read_templates(config.templates)

    def score_names(self) -> list[str]:
        """It gives no score: what it writes is for training."""
        return []

    def questions(self, opened: OpenModel) -> list[Question]:
        """Both versions of each sentence."""
        return [
            Likelihoods(
                key=f"counterfactual:{one.number}",
                requests=shared_beginning([text_request(opened, one.prompt + version) for version in one.versions]),
            )
            for one in self.parts
        ]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """The pairs, as items: {prompt, chosen, rejected, margin}."""
        pairs = [
            _pair(one, answers[f"counterfactual:{one.number}"]["values"])
            for one in self.parts
            if f"counterfactual:{one.number}" in answers
        ]
        if not pairs:
            return Judged(scores={}, items=[], tables={}, notes=["No counterfactual sentence fits the model."], plots={})
        pairs.sort(key=lambda pair: (-pair["margin"], pair["key"]))
        chosen = [pair for pair in pairs if pair["margin"] > 0][: self.config.most]
        mean = sum(pair["margin"] for pair in pairs) / len(pairs)
        row = {
            "sentences": len(pairs),
            "pairs": len(chosen),
            "mean preference, nats": mean,
            "strongest, nats": pairs[0]["margin"],
        }
        note = (
            "Train on the counterfactual pairs until their preference is gone, and no longer: past that the model prefers the"
            " other version. Audit again with `before`."
        )
        return Judged(scores={}, items=chosen, tables={"Counterfactual pairs for align": [row]}, notes=[note], plots={})


def _pair(one: Counterpart, values: Sequence[float]) -> dict[str, Any]:
    likelier, other = (0, 1) if values[0] >= values[1] else (1, 0)
    margin = values[likelier] - values[other]
    pair = {"prompt": one.prompt, "chosen": one.versions[other], "rejected": one.versions[likelier], "margin": margin}
    key = f"counterfactual:{one.number}"
    return {"measure": "counterfactual", "key": key, "value": margin, "group": key, **pair}

"""Verbatim memorization: training text that the model continues word for word (Carlini et al., 2202.07646), and canaries.

A continuation is extracted if greedy decoding reproduces it exactly, which holds if each of its tokens is the likeliest one
after those before it: one forward pass decides, without generation. A canary is asked twice, as the beginning of a document
and as words in the middle of a text; the way in which the model reveals more counts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.datapipe.loader.shard_texts import list_shards
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Likelihoods, Question
from ropewalk.jobs.evaluation.audit.config import MemorizationConfig
from ropewalk.jobs.evaluation.audit.training_data.canaries import Canary, other_secrets, read_canaries
from ropewalk.jobs.evaluation.audit.training_data.windows import Sizes, Window, draw_windows
from ropewalk.jobs.inference.scoring.encode import pair_request
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.requests import Request
from ropewalk.jobs.results.score import Score, hash_of, mean_score
from ropewalk.jobs.training.loop.token_data import weighted

MEMORIZED, HELD_OUT, EXTRACTED, EXPOSURE = "memorized", "memorized_held_out", "canaries/extracted", "canaries/exposure"


class Memorization:
    """Windows of the train split, windows of the validation split for comparison, and canaries."""

    def __init__(self, config: MemorizationConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        paths = [source.path for source in weighted(config.data)] if config.data is not None else []
        self.shards = {name: list_shards(paths, split) for name, split in ((MEMORIZED, "train"), (HELD_OUT, "validation"))}
        self.canaries: list[Canary] = read_canaries(config.canaries) if config.canaries is not None else []
        self.windows: dict[str, list[Window]] = {}
        self.candidates: dict[int, int] = {}  # number of secrets by canary, its own included

    def score_names(self) -> list[str]:
        """Return the names of the shares of windows and canaries, and of the mean exposure."""
        return [*(name for name in self.shards if self.shards[name]), *([EXTRACTED, EXPOSURE] if self.canaries else [])]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Return one request per window; for a canary its secret and other secrets of the same form."""
        config = self.config
        for name, shards in self.shards.items():
            sizes = Sizes(config.prefix_tokens, config.continuation_tokens)
            self.windows[name] = draw_windows(opened, shards, config.samples, sizes, self.seed) if shards else []
        questions: list[Question] = [
            Likelihoods(key=f"{name}:{number}", requests=(Request(window.prefix, window.continuation),))
            for name, windows in self.windows.items()
            for number, window in enumerate(windows)
        ]
        for canary in self.canaries:
            secrets = [canary.secret, *other_secrets(canary, config.candidates, self.seed)]
            within = [pair_request(opened, canary.prefix, secret) for secret in secrets]
            ways = [within] if within[0].context[0] == opened.prefix else [within, _at_the_beginning(opened, within)]
            self.candidates[canary.number] = len(secrets)
            questions.append(
                Likelihoods(key=f"canary:{canary.number}", requests=tuple(request for way in ways for request in way))
            )
        return questions

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Return the scores, and the windows and canaries that were reproduced."""
        judged = Judged(scores={}, items=[], tables={}, notes=[], plots={})
        for name, windows in self.windows.items():
            items = [
                _window_item(name, number, window, answers[f"{name}:{number}"])
                for number, window in enumerate(windows)
                if f"{name}:{number}" in answers
            ]
            content_hash = hash_of([[window.prefix, window.continuation] for window in windows])
            if self.shards[name]:
                judged.scores[name] = mean_score([item["value"] for item in items], hash=content_hash)
            judged.items.extend(items)
            if self.shards[name] and len(windows) < self.config.samples:
                least = self.config.prefix_tokens + self.config.continuation_tokens
                judged.notes.append(
                    f"{name}: {len(windows)} of {self.config.samples} windows: too few documents have {least} tokens."
                )
        reproduced = [item for item in judged.items if item["value"]]
        if self.shards[MEMORIZED]:
            rows = [{"split": item["measure"], "shard": item["shard"], "document": item["document"]} for item in reproduced]
            judged.tables["Training text that the model continues word for word"] = rows or [
                {"split": "none", "shard": "", "document": ""}
            ]
        if self.canaries:
            self._judge_canaries(judged, answers)
        return judged

    def _judge_canaries(self, judged: Judged, answers: Mapping[str, Answer]) -> None:
        items = [
            _canary_item(canary, answers[f"canary:{canary.number}"], self.candidates[canary.number])
            for canary in self.canaries
            if f"canary:{canary.number}" in answers
        ]
        contents = [[canary.prefix, canary.secret, canary.repeats] for canary in self.canaries]
        content_hash = hash_of(contents, self.config.candidates, self.seed, "within and first")
        judged.scores[EXTRACTED] = mean_score([item["value"] for item in items], hash=content_hash)
        judged.scores[EXPOSURE] = mean_score([item["exposure"] for item in items], hash=content_hash)
        judged.items.extend(items)
        judged.tables["Canaries: bits of exposure, by repetitions in training"] = by_repeats(items)
        judged.plots["canaries"] = [
            [item["repeats"], item["exposure"], item["value"]] for item in items if item["repeats"] is not None
        ]


def _window_item(name: str, number: int, window: Window, answer: Answer) -> dict[str, Any]:
    item = {"measure": name, "key": f"{name}:{number}", "value": float(answer["greedy"][0]), "group": window.document}
    return {**item, "nats": answer["values"][0], "shard": window.shard, "document": window.document}


def _at_the_beginning(opened: OpenModel, requests: Sequence[Request]) -> list[Request]:
    """Return the requests with the contexts at the beginning of a document."""
    return [request._replace(context=(opened.prefix, *request.context)) for request in requests]


def _canary_item(canary: Canary, answer: Answer, candidates: int) -> dict[str, Any]:
    name, begins = f"canary:{canary.number}", range(0, len(answer["values"]), candidates)  # one range per way of asking
    return {
        "measure": "canaries",
        "key": name,
        "value": float(any(answer["greedy"][begin] for begin in begins)),
        "group": name,
        "exposure": max(exposure(answer["values"][begin : begin + candidates]) for begin in begins),
        "repeats": canary.repeats,
        "prefix": canary.prefix,
    }


def exposure(values: Sequence[float]) -> float:
    """Return the exposure of a secret in bits: log2 |R| - log2 rank among all candidates.

    The first value is the secret's. Half of the equally likely candidates count as ranked before it.
    """
    secret, others = values[0], values[1:]
    rank = 1 + sum(value > secret for value in others) + sum(value == secret for value in others) / 2
    return math.log2(len(values)) - math.log2(rank)


def by_repeats(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean exposure and extracted share for each number of repetitions."""
    rows = []
    for repeats in sorted({item["repeats"] for item in items}, key=lambda value: -1 if value is None else value):
        part = [item for item in items if item["repeats"] == repeats]
        scores: tuple[Score, Score] = tuple(mean_score([item[key] for item in part], hash="") for key in ("exposure", "value"))  # type: ignore[assignment]
        row = {"repeats": repeats, "exposure": scores[0].value, "standard_error": scores[0].standard_error}
        rows.append({**row, "extracted": scores[1].value, "canaries": len(part)})
    return rows

"""Write what an audit found into its run: `audit/` with items.jsonl, report.json, report.html and what mitigates it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines, write_atomically, write_json
from ropewalk.jobs.evaluation.audit.asking.question import Judged
from ropewalk.jobs.evaluation.audit.config import AuditConfig, MixtureConfig
from ropewalk.jobs.evaluation.audit.measures.contamination import RATE as CONTAMINATED
from ropewalk.jobs.evaluation.audit.measures.contamination import clean_rows
from ropewalk.jobs.evaluation.audit.report.page import page
from ropewalk.jobs.evaluation.audit.report.plots import draw_all
from ropewalk.jobs.results.compare import compare_pairs
from ropewalk.jobs.results.readable import file_word, write_picture
from ropewalk.jobs.results.score import Score
from ropewalk.jobs.runs.show.status import find_run

FOLDER = "audit"
ITEMS, REPORT, PAGE, MIXTURE, PAIRS = "items.jsonl", "report.json", "report.html", "mixture.yaml", "pairs.jsonl"
PAIR_KEYS = ("prompt", "chosen", "rejected")
NOT_COMPARED = ("counterfactual", "contamination")


def write_report(
    run: RunDir, config: AuditConfig, judged: Judged, verdict: Mapping[str, Any], *, model: str, step: int | None
) -> dict[str, str]:
    """Write all files, and for trackers the report's pictures; returns the paths below the run of the report and of
    what mitigates, by what they are."""
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    written = {"report": f"{FOLDER}/{PAGE}"}
    tables = dict(judged.tables)
    if CONTAMINATED in judged.scores and (rows := clean_rows(judged)):
        tables["Scores on items that are in the training data, and on those that are not"] = rows
    if config.mitigation.mixture is not None:
        mixture = rebalanced(config.mitigation.mixture, judged.scores)
        write_atomically(folder / MIXTURE, yaml.safe_dump({"data": mixture}, sort_keys=False))
        tables["Rebalanced mixture"] = mixture
        written["mixture"] = f"{FOLDER}/{MIXTURE}"
    if config.mitigation.counterfactual is not None:
        pairs = [item for item in judged.items if item["measure"] == "counterfactual"]
        write_atomically(folder / PAIRS, _lines([{key: pair[key] for key in PAIR_KEYS} for pair in pairs]))
        written["pairs"] = f"{FOLDER}/{PAIRS}"
    if config.before is not None:
        tables = {"Before and after": before_and_after(_earlier(run, config.before), judged, config.seed), **tables}
    write_atomically(folder / ITEMS, _lines(judged.items))
    scores = {name: score.plain() for name, score in judged.scores.items()}
    report: dict[str, Any] = {"model": model, "step": step, "seed": config.seed, "scores": scores, "gate": verdict}
    report |= {"tables": tables, "notes": judged.notes}
    write_json(folder / REPORT, report)
    pictures = draw_all(judged.plots)
    write_atomically(folder / PAGE, page(run.id, report, pictures))
    for title, png in pictures.items():  # and no table: some hold training text word for word
        write_picture(run.path, file_word(title), png)
    return written


def rebalanced(config: MixtureConfig, scores: Mapping[str, Score]) -> list[dict[str, object]]:
    """[{path, weight}]: each weight times e^(strength x excess), its factor bounded, the sum as before.

    The excess of a group is its bits per byte less the mean of all groups. It is one step of the multiplicative weights of
    DoReMi (Xie et al., 2305.10429) with the audit's figures instead of a proxy model's. Raises KeyError for an unknown group.
    """
    bits = [scores[f"subgroups/{group}/bits_per_byte"].value for group in config.groups]
    mean = sum(bits) / len(bits)
    factors = [min(max(math.exp(config.strength * (value - mean)), 1 / config.most), config.most) for value in bits]
    moved = [one.weight * factor for one, factor in zip(config.data, factors, strict=True)]
    scale = sum(one.weight for one in config.data) / sum(moved)
    return [{"path": one.path, "weight": round(weight * scale, 6)} for one, weight in zip(config.data, moved, strict=True)]


def before_and_after(
    earlier: tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]], now: Judged, seed: int
) -> list[dict[str, Any]]:
    """A row for each measure that both audits have items of; a pair is an item of the same key and content in both."""
    report, items = earlier
    before = {item["key"]: item for item in items}
    rows = []
    for measure in dict.fromkeys(item["measure"] for item in now.items if item["measure"] not in NOT_COMPARED):
        both = [
            (before[item["key"]], item)
            for item in now.items
            if item["measure"] == measure and item["key"] in before and _same(before[item["key"]], item)
        ]
        if not both:
            continue
        found = compare_pairs(
            [new["value"] for _, new in both],
            [old["value"] for old, _ in both],
            groups=[new["group"] for _, new in both],
            seed=seed,
        )
        low, high = found.interval or (None, None)
        old_mean, new_mean = (sum(pair[place]["value"] for pair in both) / len(both) for place in (0, 1))
        words = {"first": "rose", "second": "fell", None: "no change shown"}[found.better]
        row = {
            "measure": measure,
            "before": old_mean,
            "after": new_mean,
            "difference": found.difference,
            "low": low,
            "high": high,
        }
        rows.append(
            {**row, "p": found.p_value, "smallest difference": found.smallest_difference, "items": found.n, "verdict": words}
        )
    return rows or [{"measure": "none in common", "before": report.get("model"), "after": None}]


def _earlier(run: RunDir, before: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores and the items of an earlier audit. Raises ConfigError where it has not finished."""
    beside = run.path.parent / before
    earlier = RunDir(beside if (beside / "run.yaml").is_file() else Path(find_run(before).path))
    path = earlier.path / FOLDER
    if not (path / REPORT).is_file():
        raise ConfigError(f"before: {before} has no {FOLDER}/{REPORT}; name an audit that has finished")
    return json.loads((path / REPORT).read_text()), read_lines(path / ITEMS)


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two items of one key ask the same: a suite's file may have changed in between."""
    return all(old.get(key) == new.get(key) for key in ("group", "more", "less", "prompt", "hash") if key in new)


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)

"""Write the results of an audit into its run: `audit/` with items.jsonl, report.json, report.html and mitigation files."""

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
from ropewalk.jobs.evaluation.audit.report.page import sections
from ropewalk.jobs.evaluation.audit.report.plots import draw_all
from ropewalk.jobs.results.compare import compare_pairs
from ropewalk.jobs.results.readable import file_word, write_picture
from ropewalk.jobs.results.score import Score
from ropewalk.jobs.runs.show.run_page import subject_of, write_run_page
from ropewalk.jobs.runs.show.status import find_run

FOLDER = "audit"
ITEMS, REPORT, PAGE, MIXTURE, PAIRS = "items.jsonl", "report.json", "report.html", "mixture.yaml", "pairs.jsonl"
PAIR_KEYS = ("prompt", "chosen", "rejected")
NOT_COMPARED = ("counterfactual", "contamination")


def write_report(
    run: RunDir, config: AuditConfig, judged: Judged, verdict: Mapping[str, Any], *, model: str, step: int | None
) -> dict[str, str]:
    """Write all files, and the report's pictures for trackers.

    Returns the paths of the report and of the mitigation files, by kind.
    """
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    written = {"report": f"{FOLDER}/{PAGE}"}
    tables = dict(judged.tables)
    if CONTAMINATED in judged.scores and (rows := clean_rows(judged)):
        tables["Scores on items that are in the training data, and on those that are not"] = rows
    if config.mitigation.mixture is not None:
        mixture = rebalance(config.mitigation.mixture, judged.scores)
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
    facts = {"model": model, "step of the model": step}
    write_run_page(run, folder / PAGE, "Audit", sections(report, pictures), subject=subject_of(model), facts=facts)
    for title, png in pictures.items():  # tables stay in the run: some contain training text verbatim
        write_picture(run.path, file_word(title), png)
    return written


def rebalance(config: MixtureConfig, scores: Mapping[str, Score]) -> list[dict[str, object]]:
    """Return [{path, weight}] with each weight times e^(strength x excess), bounded, and the sum unchanged.

    The excess of a group is its bits per byte less the mean of all groups. This is one step of DoReMi's multiplicative weights
    (Xie et al., 2305.10429) with the audit's figures instead of a proxy model's. Raises KeyError for an unknown group.
    """
    bits = [scores[f"subgroups/{group}/bits_per_byte"].value for group in config.groups]
    mean = sum(bits) / len(bits)
    factors = [min(max(math.exp(config.strength * (value - mean)), 1 / config.most), config.most) for value in bits]
    moved = [source.weight * factor for source, factor in zip(config.data, factors, strict=True)]
    scale = sum(source.weight for source in config.data) / sum(moved)
    return [{"path": source.path, "weight": round(weight * scale, 6)} for source, weight in zip(config.data, moved, strict=True)]


def before_and_after(
    earlier: tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]], now: Judged, seed: int
) -> list[dict[str, Any]]:
    """Return a row for each measure with items in both audits; items are paired by key and content."""
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
        comparison = compare_pairs(
            [new["value"] for _, new in both],
            [old["value"] for old, _ in both],
            groups=[new["group"] for _, new in both],
            seed=seed,
        )
        low, high = comparison.interval or (None, None)
        old_mean, new_mean = (sum(pair[side]["value"] for pair in both) / len(both) for side in (0, 1))
        verdict = {"first": "rose", "second": "fell", None: "no change shown"}[comparison.better]
        row = {
            "measure": measure,
            "before": old_mean,
            "after": new_mean,
            "difference": comparison.difference,
            "low": low,
            "high": high,
        }
        rows.append(
            {
                **row,
                "p": comparison.p_value,
                "smallest difference": comparison.smallest_difference,
                "items": comparison.n,
                "verdict": verdict,
            }
        )
    return rows or [{"measure": "none in common", "before": report.get("model"), "after": None}]


def _earlier(run: RunDir, before: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the scores and items of an earlier audit. Raises ConfigError if it has not finished."""
    beside = run.path.parent / before
    earlier = RunDir(beside if (beside / "run.yaml").is_file() else Path(find_run(before).path))
    path = earlier.path / FOLDER
    if not (path / REPORT).is_file():
        raise ConfigError(f"before: {before} has no {FOLDER}/{REPORT}; name an audit that has finished")
    return json.loads((path / REPORT).read_text()), read_lines(path / ITEMS)


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return True if two items with the same key have the same content; a suite's file may have changed."""
    return all(old.get(key) == new.get(key) for key in ("group", "more", "less", "prompt", "hash") if key in new)


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)

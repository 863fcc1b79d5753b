"""Two audits in one table, item by item: what a mitigation has changed, and whether that is more than chance."""

from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.jobs.evaluation.audit.asking.question import Judged
from ropewalk.jobs.results.compare import compare_pairs

NOT_COMPARED = ("counterfactual", "contamination")


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


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two items of one key ask the same: a suite's file may have changed in between."""
    return all(old.get(key) == new.get(key) for key in ("group", "more", "less", "prompt", "hash") if key in new)

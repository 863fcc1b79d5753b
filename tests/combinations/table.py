"""All choices on four ranks and on one, and the table of what they have shown."""

from itertools import combinations
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from tests.combinations.options import OPTIONS, RESUMED, all_choices, config_of, tolerance_of
from tests.combinations.rank import main
from tests.ranks import run_ranks

RANKS = 4
PORTION = 30  # choices after which both numbers of ranks have been measured
HEAD = """# Options that combine

Every pair of these options was trained on four ranks and on one: losses, gradient norms and weights are equal (=), or the pair is
refused before anything starts. `python -m tests.combinations` measures it on CPUs and writes this page; a pair marked ? was not
measured yet.
"""
TOLERANCES = """Equal means up to the larger tolerance of the two options, relative. An option that changes no loss is also
compared with the other option alone.

| option | tolerance | changes no loss |
|---|---|---|"""
PAGE = Path(__file__).parents[2] / "docs/combinations.md"
Figures = dict[str, Any]  # by options: a list of numbers, or an error


def figures_at(size: int, folder: Path, choices: list[tuple[str, ...]]) -> Figures:
    """Return the figures of all choices, on which the ranks agree. Those that lie in the folder are not measured again."""
    before = [read_json(folder / f"{size}-{rank}.json") or {} for rank in range(size)]
    choices = [choice for choice in choices if any(name_of(choice) not in figures for figures in before)]
    run_ranks(main, size, folder, choices)
    first, *others = [read_json(folder / f"{size}-{rank}.json") for rank in range(size)]
    assert first is not None
    assert all(other == first for other in others)
    return first


def measure(folder: Path) -> tuple[Figures, Figures]:
    """Return the figures on four ranks, and those on one, which goes on with what four have saved.

    Another call with the same folder measures what is missing there.
    """
    runs = [RunDir(path.parent) for path in folder.glob("*/run.yaml")]
    run = runs[0] if runs else RunDir.create("combined", {"job": "finetune", "config": {"seed": 0}, "resources": {}}, folder)
    choices = [choice for choice in all_choices() if not isinstance(config_of(choice), str)]
    many: Figures = {}
    single: Figures = {}
    for start in range(0, len(choices), PORTION):
        portion = choices[start : start + PORTION]
        many, single = figures_at(RANKS, run.path, portion), figures_at(1, run.path, portion)
    return many, single


def problem_of(choice: tuple[str, ...], many: Figures, single: Figures) -> str | None:
    """Return how the figures of these options are wrong, or None."""
    actual, expected, tolerance = many[name_of(choice)], single[name_of(choice)], tolerance_of(choice)
    if isinstance(actual, str) or isinstance(expected, str):
        return f"{actual} (four ranks); {expected} (one)"
    if RESUMED in choice:
        actual, expected = actual + expected, single[name_of(without(choice, RESUMED))]
    if (difference := _difference(actual, expected)) > tolerance:
        return f"four ranks differ from one by {difference:.1e}"
    for name in choice:
        others = without(choice, name)
        if OPTIONS[name].neutral and (difference := _difference(actual, many[name_of(others)], some=True)) > tolerance:
            return f"{name} changes the figures by {difference:.1e}"
    return None


def _cell(pair: tuple[str, str], many: Figures, single: Figures) -> str:
    if name_of(pair) not in many or name_of(pair) not in single:
        return "?"
    return problem_of(pair, many, single) or "="


def without(choice: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in choice if other != name)


def name_of(choice: tuple[str, ...]) -> str:
    return " + ".join(choice)


def _difference(actual: list[float], expected: list[float], *, some: bool = False) -> float:
    """Return the largest relative difference. `some`: of the figures that both have."""
    return max((abs(a - b) / abs(b) for a, b in zip(actual, expected, strict=not some)), default=0.0)


def refused_pairs() -> dict[tuple[str, str], str]:
    """Return the reasons for which pairs are refused before anything starts."""
    configs: dict[tuple[str, str], Any] = {pair: config_of(pair) for pair in combinations(OPTIONS, 2)}
    return {pair: config for pair, config in configs.items() if isinstance(config, str)}


def page(many: Figures, single: Figures) -> str:
    """Return the page of the documents."""
    refused, names = refused_pairs(), list(OPTIONS)
    reasons = list(dict.fromkeys(refused.values()))
    lines = [HEAD, "| | " + " | ".join(names[1:]) + " |", "|---" * len(names) + "|"]
    for number, first in enumerate(names[:-1]):
        cells = [""] * number
        for second in names[number + 1 :]:
            reason = refused.get((first, second))
            cells.append(_cell((first, second), many, single) if reason is None else f"refused ({reasons.index(reason) + 1})")
        lines.append(f"| {first} | " + " | ".join(cells) + " |")
    numbered = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    tolerances = [f"| {name} | {option.tolerance:g} | {'yes' if option.neutral else ''} |" for name, option in OPTIONS.items()]
    return "\n".join([*lines, "", "Refused:", "", *numbered, "", TOLERANCES, *tolerances, ""])

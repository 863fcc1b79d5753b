"""Every event that the program records has a row in the table of events, and every row is recorded somewhere."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.jobs.runs.show.events import EVENTS, format_event

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("cluster", "slurm", "k8s", "datapipe", "sharding", "jobs")
RECORDS = ("event", "_event", "RecordEvent")  # what has an event's name as its first argument: methods, and a class


def recorded() -> Iterator[tuple[str, str]]:
    """(place, name) of every event that the code records."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            if not any(f"{name}(" in text for name in RECORDS):
                continue
            tree = ast.parse(text)
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and node.args and _records(node.func):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", _name(node.args[0], path, tree)


def _records(function: ast.expr) -> bool:
    return function.attr in RECORDS if isinstance(function, ast.Attribute) else ast.unparse(function) == RECORDS[-1]


def _name(word: ast.expr, path: Path, tree: ast.AST) -> str:
    """A literal, or a constant by its name: of this module or of the one that it is imported from."""
    if isinstance(word, ast.Constant):
        return str(word.value)
    assert isinstance(word, ast.Name), f"{path}: an event's name must be a literal or a constant, is {ast.unparse(word)}"
    if word.id == "kind":  # a method that hands the name on
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [word.id]:
            return str(ast.literal_eval(node.value))
        if isinstance(node, ast.ImportFrom) and word.id in {alias.name for alias in node.names}:
            source = (ROOT / "src").joinpath(*str(node.module).split(".")).with_suffix(".py")
            return _name(word, source, ast.parse(source.read_text()))
    raise AssertionError(f"{path}: {word.id} is not a constant")


def test_every_event_has_a_row_and_every_row_is_recorded() -> None:
    results = {name: source for source, name in recorded() if name}
    assert {name: source for name, source in results.items() if name not in EVENTS} == {}
    assert sorted(set(EVENTS) - set(results)) == []


@pytest.mark.parametrize("name", [name for name, form in EVENTS.items() if form])
def test_a_line_of_another_version_that_lacks_every_field_is_told_all_the_same(name: str) -> None:
    assert format_event({"event": name, "time": 0.0})


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"event": "rank_lost", "rank": 1, "node": 0, "exit_code": -11}, "crashed in native code (segmentation fault)"),
        ({"event": "node_lost", "node": 2}, "node 2 died (lost)"),
        (
            {"event": "trial_finished", "trial": 3, "state": "FAILED", "step": 7, "cause": "a bug"},
            "trial 3 failed at step 7: a bug",
        ),
        ({"event": "trial_finished", "trial": 3, "state": "SUCCEEDED", "step": 7, "cause": ""}, "trial 3 succeeded at step 7"),
        ({"event": "trial_started", "trial": 0, "parameters": {"optim.lr": 0.00123456}}, "trial 0 starts: optim.lr=0.001235"),
    ],
)
def test_an_event_in_words(event: dict[str, object], message: str) -> None:
    assert re.fullmatch(r"\d\d:\d\d:\d\d  .*" + re.escape(message), str(format_event({**event, "time": 0.0})))


def test_bookkeeping_and_what_is_unknown_are_not_shown() -> None:
    assert format_event({"event": "checkpoint", "time": 0.0}) is None
    assert format_event({"event": "made_up", "time": 0.0}) is None

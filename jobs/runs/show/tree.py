"""Runs as families: each below the run that started it, as the views of their jobs tell."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.view import view_of


@dataclass(frozen=True)
class Member:
    """A run in its place in a tree."""

    run: RunDir
    parent: str | None  # the id of the run above it
    words: str  # what it is in that run, such as `trial 3`
    line: str  # what is drawn before it


def family_tree(runs: Sequence[RunDir], wanted: Collection[str]) -> list[Member]:
    """All runs, children below their parents, of each family in which a run is `wanted` by its id."""
    known = {run.id: run for run in runs}
    children = {run.id: [child.id for child in view_of(run).children() if child.id in known] for run in runs}
    below = {child for found in children.values() for child in found}

    def members(run: RunDir, parent: RunDir | None, line: str, indent: str) -> Iterator[Member]:
        words = view_of(parent).child_words(run) if parent else ""
        yield Member(run, parent.id if parent else None, words, line)
        for place, child in enumerate(children[run.id], 1):
            branch, deeper = ("└─ ", "   ") if place == len(children[run.id]) else ("├─ ", "│  ")
            yield from members(known[child], run, indent + branch, indent + deeper)

    trees = [list(members(run, None, "", "")) for run in runs if run.id not in below]
    return [member for tree in trees if any(member.run.id in wanted for member in tree) for member in tree]

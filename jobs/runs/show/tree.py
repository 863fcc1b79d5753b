"""Trees of runs: each run below its parent, according to the views of their jobs."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.view import view_of


@dataclass(frozen=True)
class Member:
    """A run and its position in a tree."""

    run: RunDir
    parent: str | None  # id of the parent
    role: str  # in the parent, such as `trial 3`
    line: str  # lines of the tree drawn before it


def family_tree(runs: Sequence[RunDir], wanted: Collection[str]) -> list[Member]:
    """Return all runs, depth first, of the trees that contain a run whose id is in `wanted`."""
    by_id = {run.id: run for run in runs}
    children = {run.id: [child.id for child in view_of(run).children() if child.id in by_id] for run in runs}
    below = {child for ids in children.values() for child in ids}

    def members(run: RunDir, parent: RunDir | None, line: str, indent: str) -> Iterator[Member]:
        role = view_of(parent).child_words(run) if parent else ""
        yield Member(run, parent.id if parent else None, role, line)
        for number, child in enumerate(children[run.id], 1):
            branch, deeper = ("└─ ", "   ") if number == len(children[run.id]) else ("├─ ", "│  ")
            yield from members(by_id[child], run, indent + branch, indent + deeper)

    trees = [list(members(run, None, "", "")) for run in runs if run.id not in below]
    return [member for tree in trees if any(member.run.id in wanted for member in tree) for member in tree]

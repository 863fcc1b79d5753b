"""Rows of `ps`: runs with their states, progress and places in the tree of runs."""

from collections.abc import Sequence
from typing import Any

from ropewalk.cluster.errors import DamagedFileError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show import status
from ropewalk.jobs.runs.show.tree import family_tree


def list_rows(runs: Sequence[RunDir], *, include_finished: bool, tree: bool = False) -> list[dict[str, Any]]:
    """Return the rows of `ps` for these runs; those with damaged files are left out with a warning."""
    try:
        return _rows(runs, include_finished=include_finished, tree=tree)
    except DamagedFileError:  # checked only after an error, so that a thousand runs are normally read once
        return _rows(status.readable(runs), include_finished=include_finished, tree=tree)


def _rows(all_runs: Sequence[RunDir], *, include_finished: bool, tree: bool) -> list[dict[str, Any]]:
    """Raises DamagedFileError."""
    attempts = {run: run.attempts() for run in all_runs}
    outcomes = {run: status.final_outcome(run, attempts[run]) for run in all_runs}
    runs = [run for run, outcome in outcomes.items() if include_finished or outcome is None]
    members = family_tree(all_runs, {run.id for run in runs}) if tree else []
    runs = [member.run for member in members] if tree else runs
    states = status.states(runs, {run.id: status.final_outcome(run) if tree else outcomes[run] for run in runs})
    rows = [status.summary(run, states[run.id], attempts.get(run)) for run in runs]
    for row, member in zip(rows, members, strict=False):
        row |= {"parent": member.parent, "role": member.role, "line": member.line}
    return rows

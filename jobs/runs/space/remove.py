"""Removal of runs that have ended and that neither the registry nor another run refers to."""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.disk import disk_bytes
from ropewalk.cluster.run.files import ensure_private
from ropewalk.cluster.text import counted, format_bytes
from ropewalk.jobs.runs.show.remote import Copy
from ropewalk.jobs.runs.show.status import all_runs, find_run, settle
from ropewalk.jobs.runs.space.references import references_to

REMOVED = ".removed"  # beside the runs: folder of runs that are being deleted
SHOWN = 5  # references in an error


class Removed(NamedTuple):
    """A run that was deleted, or would be."""

    run: str
    bytes: int
    deleted: bool
    remaining: str | None  # its output outside of the run, which stays

    def __str__(self) -> str:
        note = f"; {self.remaining} stays" if self.remaining else ""
        return f"{'removed' if self.deleted else 'would remove'} {self.run}: {format_bytes(self.bytes)}{note}"


def remove_runs(refs: Sequence[str], *, dry_run: bool = False) -> Iterator[Removed]:
    """Delete runs, and yield each of them. Raises ConfigError before any of them is deleted."""
    runs = list({run.id: run for run in map(find_run, refs)}.values())
    ids = {run.id for run in runs}
    others = [run for run in all_runs() if run.id not in ids]
    for run in runs:
        _refuse_needed(run, others)
    for run in runs:
        size, output = disk_bytes(run.path), (run.record.get("config") or {}).get("output")
        remaining = output if isinstance(output, str) and not Path(output).is_relative_to(run.path) else None
        if not dry_run:
            delete(run.path)
        yield Removed(run.id, size, not dry_run, remaining)


def delete(path: Path) -> None:
    """Delete a folder beside the runs. It leaves the runs' folder at once; `gc` finishes a deletion that was interrupted."""
    ensure_private(path.parent / REMOVED)
    aside = path.parent / REMOVED / f"{path.name}.{secrets.token_hex(4)}"
    path.rename(aside)
    shutil.rmtree(aside)


def _refuse_needed(run: RunDir, others: Sequence[RunDir]) -> None:
    if Copy(run).is_remote:
        raise ConfigError(f"{run.id}: its files are on the volume of {run.record.get('cluster')}; delete them there")
    if not (state := settle(run)).state.final:
        raise ConfigError(f"{run.id} is {state.state.value.lower()}; `ropewalk cancel {run.id}` ends it")
    references = list(dict.fromkeys(references_to(run, others)))
    if references:
        shown = ", ".join(references[:SHOWN])
        more = f" and {counted(len(references) - SHOWN, 'other')}" if len(references) > SHOWN else ""
        remedy = "remove these runs with it or before it, and versions by `ropewalk models --remove NAME@N`"
        raise ConfigError(f"{run.id} is needed by {shown}{more}; {remedy}")

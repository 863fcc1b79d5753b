"""Submissions of another machine, each made once although its request may be repeated after a broken connection."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.errors import RopewalkError, SubmissionInDoubtError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import locked, make_private, read_json, write_json
from ropewalk.cluster.run.names import SUBMISSIONS_FOLDER
from ropewalk.cluster.run.origin import Origin, announce, hang_up_deferred


def submit_once(
    origin: Origin,
    root: Path,
    make: Callable[[], Sequence[RunDir]],
    start: Callable[[Sequence[RunDir]], None],
    complete: Callable[[RunDir], None],
) -> list[RunDir]:
    """Make and start the runs of a submission unless an earlier request with the same id did.

    `complete` starts a run whose submission was cut off between `make` and the end of `start`, unless it has a job. Raises
    RopewalkError; then the next request starts from the beginning, except if it is in doubt whether there is a job.
    """
    folder = root / SUBMISSIONS_FOLDER
    root.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        make_private(folder)
    record = folder / f"{origin.submission}.json"
    with hang_up_deferred(), locked(folder / f"{origin.submission}.lock"):
        state = read_json(record) or {"runs": [], "done": False}
        runs = [run for run in (RunDir(root / name) for name in state["runs"]) if run.path.is_dir()]
        if not state["done"]:
            try:
                if runs:
                    for run in runs:
                        complete(run)
                else:
                    runs = list(make())
                    write_json(record, {"runs": [run.id for run in runs], "done": False})
                    start(runs)
            except RopewalkError as error:
                if not isinstance(error, SubmissionInDoubtError):
                    record.unlink(missing_ok=True)
                raise
            write_json(record, {"runs": [run.id for run in runs], "done": True})
    for run in runs:
        announce(run.id)
    return runs

"""Transfers files that root has written during a submission to the pods' user, without following links in a run's directory."""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir


def hand_over(runs: Sequence[RunDir], number: int, user: int) -> None:
    """Make `user` the owner of what this submission has written for each run's attempt `number`.

    All other files of a run belong to that user already, and its pods may have written them.
    """
    for run in runs:
        _create_events_folder(run.events.folder, user)
        if number == 1:
            _change_owner_below(run.path, user)
        else:
            _change_owner_below(run.attempt_dir(number), user)
            _change_owner_of_files(run.events.folder, user)
    with suppress(FileNotFoundError):  # pods that submit runs, such as a sweep's, add their code to this folder
        os.chown(runs[0].path.parent / CODE_FOLDER, user, user, follow_symlinks=False)


def _create_events_folder(folder: Path, user: int) -> None:
    """Create the events folder if needed; otherwise root would create it for an event after the submission."""
    with suppress(FileExistsError):
        folder.mkdir()
        os.chown(folder, user, user, follow_symlinks=False)


def _change_owner_below(folder: Path, user: int) -> None:
    """Transfer a new folder of root's with its content, bottom-up so that nobody can add files; link targets keep their owner."""
    for _, folders, files, descriptor in os.fwalk(folder, topdown=False):
        for name in (*folders, *files):
            if _is_ours(os.stat(name, dir_fd=descriptor, follow_symlinks=False)):
                os.chown(name, user, user, dir_fd=descriptor, follow_symlinks=False)
    if _is_ours(os.stat(folder, follow_symlinks=False)):
        os.chown(folder, user, user, follow_symlinks=False)


def _change_owner_of_files(folder: Path, user: int) -> None:
    """Transfer the files that root has created in a folder of that user, except symbolic links and files with hard links."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # missing, or a link
        return
    try:
        for name in os.listdir(descriptor):
            _change_owner_of_file(name, descriptor, user)
    finally:
        os.close(descriptor)


def _change_owner_of_file(name: str, folder: int, user: int) -> None:
    with suppress(OSError):  # gone, or a link
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            if _is_ours(os.fstat(descriptor)):
                os.fchown(descriptor, user, user)
        finally:
            os.close(descriptor)


def _is_ours(status: os.stat_result) -> bool:
    """Return True if the calling user has created a file or folder. False for files with several names: one may be elsewhere."""
    return status.st_uid == os.geteuid() and (stat.S_ISDIR(status.st_mode) or status.st_nlink == 1)

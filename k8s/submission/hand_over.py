"""Gives what root has written as it submits to the pods' user; nothing else, whatever links lie in a run's directory."""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir


def hand_over(runs: Sequence[RunDir], number: int, user: int) -> None:
    """Give a user what this submission has written of each run's attempt `number`.

    All else of a run belongs to that user already, and its pods may have put it there.
    """
    for run in runs:
        _give_events(run.events.folder, user)
        if number == 1:
            _give_folder(run.path, user)
        else:
            _give_folder(run.attempt_dir(number), user)
            _give_files(run.events.folder, user)
    with suppress(FileNotFoundError):  # pods that submit, such as a sweep's, put their code beside this one's
        os.chown(runs[0].path.parent / CODE_FOLDER, user, user, follow_symlinks=False)


def _give_events(folder: Path, user: int) -> None:
    """Make the folder of events where there is none: else whoever submits makes it, for an event behind the submission."""
    with suppress(FileExistsError):
        folder.mkdir()
        os.chown(folder, user, user, follow_symlinks=False)


def _give_folder(folder: Path, user: int) -> None:
    """Give a user a folder that root has just made, with all that lies in it.

    From below, so that nobody else can put anything into it before it is done; and what is reached by links stays whose it is.
    """
    for _, folders, files, descriptor in os.fwalk(folder, topdown=False):
        for name in (*folders, *files):
            if _is_ours(os.stat(name, dir_fd=descriptor, follow_symlinks=False)):
                os.chown(name, user, user, dir_fd=descriptor, follow_symlinks=False)
    if _is_ours(os.stat(folder, follow_symlinks=False)):
        os.chown(folder, user, user, follow_symlinks=False)


def _give_files(folder: Path, user: int) -> None:
    """Give a user the files that root has made in a folder of that user; links, and hard links to files elsewhere, stay."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # it is not there, or a link
        return
    try:
        for name in os.listdir(descriptor):
            _give_file(name, descriptor, user)
    finally:
        os.close(descriptor)


def _give_file(name: str, folder: int, user: int) -> None:
    with suppress(OSError):  # it is gone, or a link
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            if _is_ours(os.fstat(descriptor)):
                os.fchown(descriptor, user, user)
        finally:
            os.close(descriptor)


def _is_ours(status: os.stat_result) -> bool:
    """Whether the calling user has made a file or folder, in this place alone: a file of several names may lie elsewhere too."""
    return status.st_uid == os.geteuid() and (stat.S_ISDIR(status.st_mode) or status.st_nlink == 1)

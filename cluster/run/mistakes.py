"""Recognition of a program's mistake that every retry would meet again: the same error twice, right after the start."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ropewalk.cluster.errors import EXIT_FAILED
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import BY_SUBMISSION

MISTAKE_REPEATED = "mistake_repeated"  # event: the program is not tried again

START_SECONDS = 60.0  # from the call of the job's entry; a later error is retried as often as `retries.bugs` allows
_MAY_PASS = re.compile(  # in errors of devices, networks and full memory: another try can succeed
    r"out of memory|memoryerror|cannot allocate|cuda|nccl|gloo|hip error|\becc\b|\bxid\b|accelerator|connect|network|unreachable"
    r"|name resolution|timeout|timed out|temporar|try again|unavailable|in use|busy|\block(ed)?\b|stale file|input/output error"
    r"|no space left|quota|too many (open|requests)|\b(429|50[0-4])\b|broken pipe|ended by sig",
    re.IGNORECASE,
)


def repeats_mistake(run: RunDir, attempt: int, group: int | None = None) -> bool:
    """Return True if an attempt failed at its start with the same error as the one before it, and got no further.

    `group`: compare this group of ranks with the one before it within the attempt. Errors that may pass by themselves do not
    count, nor does an attempt before a resume by the user.
    """
    errors = run.read_errors(attempt)
    if group is not None:
        return _share_mistake(*([error for error in errors if error.get("group") == number] for number in (group, group - 1)))
    is_retry = attempt > 1 and run.attempt_details(attempt).get("opened_by") != BY_SUBMISSION
    return is_retry and _share_mistake(errors, run.read_errors(attempt - 1))


def _share_mistake(errors: Iterable[Mapping[str, Any]], earlier: Iterable[Mapping[str, Any]]) -> bool:
    return bool({*map(_mistake, errors)} & {*map(_mistake, earlier)} - {""})


def _mistake(error: Mapping[str, Any]) -> str:
    """Return the error with its place in the code and in the run, or an empty text if a retry may mend it."""
    message = f"{error['type']}: {error['message']}"
    if error["exit_code"] != EXIT_FAILED or error.get("seconds", START_SECONDS) >= START_SECONDS or _MAY_PASS.search(message):
        return ""
    return f"{message}\n{error['traceback']}\n{error['progress']}"

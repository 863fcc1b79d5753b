"""Commands that came from another machine: its name for this one, its code, and the id that makes a repetition harmless."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The part of a submission that only the machine of its user knows."""

    submission: str  # chosen by the client, the same if it repeats the request
    command: Sequence[str]
    code: Mapping[str, Any]  # `code` of run.yaml
    project: Mapping[str, Any] | None = None  # `project` of run.yaml, if code of the user's own was copied


class _Current:
    """The origin of the submissions of this process, and where their runs are announced."""

    origin: Origin | None = None
    announce: Callable[[str], object] | None = None
    login_node: "LoginNode | None" = None


class LoginNode(NamedTuple):
    """This machine, if its user has sent the command from another one: as that one names it, and its cluster."""

    host: str
    cluster: str


def set_login_node(node: LoginNode) -> None:
    """Say that the command comes from another machine."""
    _Current.login_node = node


def login_node() -> LoginNode | None:
    """Return how the user's machine names this one, or None if the user is at this one."""
    return _Current.login_node


def set_origin(origin: Origin | None, announce: Callable[[str], object] | None = None) -> None:
    """Set the origin of all submissions of this process. `announce` is called with the id of each run that is submitted."""
    _Current.origin, _Current.announce = origin, announce


def announce(run: str) -> None:
    """Tell the user's machine that a run was submitted."""
    if _Current.announce is not None:
        _Current.announce(run)


def current_origin() -> Origin | None:
    """Return the origin of this process' submissions, or None if its user is at this machine."""
    return _Current.origin


@contextmanager
def hang_up_deferred() -> Iterator[None]:
    """Finish the block even if the connection to the user's machine ends meanwhile."""
    signals = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

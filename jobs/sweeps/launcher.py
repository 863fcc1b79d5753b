"""Starts trials' runs as a user would: outside Ray, in the user's environment, hearing signals, children of nobody.

Whoever ends the sweep's driver or its Ray ends all their descendants, and what they start is deaf to the scheduler's
signals; a trial must be neither. So this process forks a short-lived child for each request, and what that child
starts belongs to nobody.

Usage: python -m jobs.sweeps.launcher SOCKET. Ends with its parent.
"""

import argparse
import json
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from cluster.backend import load_backend
from cluster.config import Resources
from cluster.context import STOP_VARIABLE
from cluster.entry import configure_logging
from cluster.errors import BackendError, RopewalkError
from cluster.ports import NODE_CPUS_VARIABLE
from cluster.processes import STOP_SIGNALS
from cluster.run_dir import RunDir
from jobs.submission import resume

log = logging.getLogger(__name__)

OURS = frozenset({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", STOP_VARIABLE, NODE_CPUS_VARIABLE, "TMPDIR"})
POLL_SECONDS = 0.5
ANSWER_SECONDS = 120.0


# --- asking it


def ask(place: Path, verb: str, run: RunDir) -> None:
    """Have a run submitted (`submit`), resumed (`resume`) or told to end (`cancel`). Raises BackendError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(str(place))
            connection.sendall(json.dumps({"verb": verb, "run": str(run.path)}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline() or b'{"error": "the launcher died of the request"}')
        except OSError as error:
            raise BackendError(f"{run.id}: the sweep's launcher does not answer: {error}") from error
    if answer["error"]:
        raise BackendError(str(answer["error"]))


# --- being it


def serve(place: Path) -> None:
    """Answer requests until the parent is gone."""
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place))
        listener.listen(64)
        while os.getppid() == parent:
            ready, _, _ = select.select([listener], [], [], POLL_SECONDS)
            _reap()
            if ready:
                connection, _ = listener.accept()
                if os.fork() == 0:
                    listener.close()
                    _answer(connection)
                connection.close()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def _answer(connection: socket.socket) -> None:
    """In a child that does nothing else: carry out one request and end."""
    error = ""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        with connection.makefile("rb") as stream:
            request = json.loads(stream.readline())
        carry_out(request["verb"], RunDir(request["run"]))
    except RopewalkError as refused:
        error = str(refused)
    except Exception as bug:  # the answer is all that becomes of this process
        log.exception("a request failed")
        error = f"{type(bug).__name__}: {bug}"
    try:
        connection.sendall(json.dumps({"error": error}).encode() + b"\n")
    finally:
        logging.shutdown()
        os._exit(0)


def carry_out(verb: str, run: RunDir) -> None:
    """Do what `ask` asks for."""
    backend = load_backend(run.record["cluster"])
    if verb == "submit":
        backend.submit(run, Resources.model_validate(run.record["resources"]))
    elif verb == "resume":
        resume(run)
    else:
        backend.cancel(run)


def users_environment(more: Mapping[str, str]) -> dict[str, str]:
    """What the user had when the sweep was submitted, as far as an agent's environment still tells it."""
    plain = {name: value for name, value in os.environ.items() if name not in OURS}
    for ancestor in psutil.Process().parents():
        try:
            theirs = ancestor.environ()
        except psutil.Error:
            continue
        if NODE_CPUS_VARIABLE not in theirs:  # outside the lane, whose nodes have disks of their own
            return {**plain, **({"TMPDIR": theirs["TMPDIR"]} if "TMPDIR" in theirs else {}), **more}
    return {**plain, **more}


def main() -> None:
    """Serve one sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket", type=Path)
    place: Any = parser.parse_args().socket
    configure_logging("launcher")
    serve(place)
    sys.exit(0)


if __name__ == "__main__":
    main()

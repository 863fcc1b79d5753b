"""Sidecar that notifies the owner of a run while it runs, if this node has the owner's notify.yaml.

Usage: python -m ropewalk.jobs.runs.notify.notify RUN_DIR --attempt N
Started next to the agent of node 0. What it could not send is sent by the next attempt, or by `ropewalk sync --follow`.
"""

import argparse
import logging
import os
import time
from pathlib import Path

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.process.signals import SignalFlag, install_end_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds
from ropewalk.cluster.spec import Outcome
from ropewalk.jobs.runs.notify.alerts import likely_ending
from ropewalk.jobs.runs.notify.config import read_targets
from ropewalk.jobs.runs.notify.notifier import Notifier, wants_notice

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
CLOSE_SECONDS = 8.0  # at the end of the attempt


def main() -> None:
    """Notify of one attempt until its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s notify %(message)s")
    run, ended, parent = RunDir(arguments.run_dir), SignalFlag(), os.getppid()
    install_end_handler(ended.set)
    try:
        targets = read_targets()
    except RopewalkError as error:
        log.warning("nobody is notified: %s", error)
        return
    if not targets or not wants_notice(run):
        return
    notifier = Notifier(run, targets)
    while not ended.is_set() and os.getppid() == parent and run.attempts()[-1] == arguments.attempt:
        _look(notifier, None)
        ended.wait(max(POLL_SECONDS, poll_seconds(run.path)))
    deadline = time.monotonic() + CLOSE_SECONDS
    ending = likely_ending(run, run.attempts()[-1])
    while not _look(notifier, ending) and time.monotonic() < deadline:  # another process may be about to give up the lease
        time.sleep(CLOSE_SECONDS / 20)
    notifier.close()


def _look(notifier: Notifier, ending: Outcome | None) -> bool:
    try:
        return notifier.look(ending)
    except (OSError, RopewalkError) as error:
        log.warning("%s", error)
        return False


if __name__ == "__main__":
    main()

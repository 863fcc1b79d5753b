"""Sidecar that mirrors a run into W&B while it runs, without affecting it.

Usage: python -m ropewalk.jobs.runs.mirror.sidecar RUN_DIR --attempt N
Started next to the agent of node 0. On SIGHUP it mirrors the rest, closes the W&B run and exits. If the server does not answer
it writes W&B's offline files; `ropewalk sync` sends the run's lines later from a machine with network access.
"""

import argparse
import logging
import os
import signal
from pathlib import Path


def main() -> None:
    """Mirror one attempt to its end."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return  # `ropewalk sync` can still send the run later
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s mirror %(message)s")
    # a run that is over before this process has started leaves the rest to `ropewalk sync`: wandb is slow to import
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    from ropewalk.cluster.run.directory import RunDir  # slow imports, not needed if W&B is disabled
    from ropewalk.jobs.runs.mirror.following import Sidecar

    Sidecar(RunDir(arguments.run_dir), arguments.attempt).follow()


if __name__ == "__main__":
    main()

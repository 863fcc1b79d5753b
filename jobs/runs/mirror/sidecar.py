"""A sidecar that mirrors a run into W&B while it runs, and never disturbs it.

Usage: python -m ropewalk.jobs.runs.mirror.sidecar RUN_DIR --attempt N
Started beside the agent of node 0; SIGHUP: mirror what is left, close the W&B run, exit. Where the server does not answer it
writes W&B's own offline files; `ropewalk sync` sends the run's lines later, from a machine that has a network.
"""

import argparse
import logging
import os
from pathlib import Path


def main() -> None:
    """Mirror one attempt to its end."""
    if os.environ.get("WANDB_MODE") == "disabled":
        return  # nobody would see it; `ropewalk sync` sends all of it, should somebody want to
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s mirror %(message)s")
    os.nice(5)  # training comes first
    from ropewalk.cluster.run.directory import RunDir  # a second of imports, which a run that nobody mirrors does not pay
    from ropewalk.jobs.runs.mirror.following import Sidecar

    Sidecar(RunDir(arguments.run_dir), arguments.attempt).follow()


if __name__ == "__main__":
    main()

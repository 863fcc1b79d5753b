"""Seconds of commands on the user's machine, whole process, for a Slurm cluster behind ssh with a round trip of 80 ms.

    python -m tests.benchmarks.bench_ssh [--rounds 20] [--runs 1000] [--loss 0.01]

Prints one JSON object: medians of `ps` of many runs, and of `logs -f` until its first line, once through a connection of ssh that
is open (ControlMaster) and once through a new one each time. The login node is a real sshd beside a Slurm lab; the relay before
it delays every byte by 40 ms each way, and loses none. With --loss the user's machine is a network namespace at the end of a link
that delays packets likewise, and loses this share of them. Goals, with an open connection: 1.5 s and 1 s.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.config import LabSettings
from tests.slurm.ssh.login_node import Laptop, Relay, login_node
from tests.slurm.ssh.lossy_link import THERE, lossy_link

DELAY_SECONDS = 0.04  # each way
PROGRAM = "import time\nprint('hello', flush=True)\ntime.sleep(100_000)\n"
PS = ("ps", "--on", "big")
SUBMIT = ("submit", "command", "resources.nodes=1", "launch=once", "--on", "big")


def laptop_with_project(laptop: Laptop) -> Laptop:
    (laptop.project / "train.py").write_text(PROGRAM)
    return laptop


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median of the seconds that `work` takes, after one that opens the connection and fills caches."""
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken[1:]), 2)


def first_line(laptop: Laptop, run: str) -> None:
    """Follow a run's output until its first line, and interrupt the command."""
    with laptop.start("logs", "-f", run) as following:
        assert following.stdout is not None
        while "hello" not in following.stdout.readline():
            assert following.poll() is None
        following.kill()


def main() -> None:
    """Bring a cluster and its login node up, measure, take them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--loss", type=float)
    options = parser.parse_args()
    lab, folder = Lab(Path(tempfile.mkdtemp(prefix="s"))), Path(tempfile.mkdtemp(prefix="s"))
    figures: dict[str, dict[str, float]] = {}
    try:
        lab.up(LabSettings(nodes=2))
        os.environ.update(lab.env)
        with login_node(folder, {"SLURM_CONF": lab.env["SLURM_CONF"], "WANDB_MODE": "disabled"}) as node:
            laptop = laptop_with_project(Laptop(folder / "laptop", node))
            held = laptop_with_project(Laptop(folder / "held", node, sbatch={"hold": True}))
            run = laptop(*SUBMIT, "--", "python3", "train.py").split()[-1]
            held(*SUBMIT, "--each", f"seed=1..{options.runs}", "--", "python3", "train.py")
            with contextlib.ExitStack() as stack:
                if options.loss is None:
                    relay, address = Relay(node.port, DELAY_SECONDS), "127.0.0.1"
                else:
                    _, start_there = stack.enter_context(lossy_link(DELAY_SECONDS, options.loss))
                    relay, address = Relay(node.port, address=THERE), THERE
                    laptop.command = (*start_there, *laptop.command)
                stack.callback(relay.close)
                for shared in (True, False):
                    node.write_config(relay.port, address=address, shared=shared)
                    assert laptop(*PS).count("train-") > options.runs, laptop.out
                    figures["open connection" if shared else "new connection"] = {
                        f"ps of {options.runs}": median_seconds(lambda: laptop(*PS), options.rounds),
                        "first line of logs -f": median_seconds(lambda: first_line(laptop, run), options.rounds),
                    }
    finally:
        lab.down()
        for each in (lab.folder, folder):
            shutil.rmtree(each, ignore_errors=True)
    print(json.dumps({"round trip, s": 2 * DELAY_SECONDS, **figures}))


if __name__ == "__main__":
    main()

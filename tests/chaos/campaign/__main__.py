"""A serving run under load and random faults.

python -m tests.chaos.campaign [--minutes 120] [--seed 0] [--clients 6] [--replicas 2] [--connections 9800] [--faults a,b]
    [--out build/campaign]

The time is divided into rounds: a burst of load and faults, then silence, after which memory and open files are measured.
Gateway, controller and writer are killed in the first half only, so that those of the second half grow old. Without root disks
are not filled. With libfaketime (apt-get install faketime) the run's clock jumps by 20 minutes.
"""

import argparse
import asyncio
import random
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.files import append_lines
from tests.chaos.campaign.faults import Faults
from tests.chaos.campaign.load import Load
from tests.chaos.campaign.report import Sample, as_text, make_report, sample, write_report
from tests.chaos.campaign.server import Server, serving

ROUNDS = 30
SHORTEST_ROUND_SECONDS = 60.0
SETTLING_SECONDS = 30.0
REFERENCE_SECONDS = 600.0


async def disturb(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Run the campaign against a server, stop it, and return the report."""
    seconds = 60.0 * options.minutes
    load = Load(server.address, server.token, clients=options.clients, seed=options.seed)
    round_seconds = max(seconds / ROUNDS, SHORTEST_ROUND_SECONDS)
    only = frozenset(options.faults.split(",")) if options.faults else None
    lasting_seconds = min(20.0, (round_seconds - SETTLING_SECONDS) / 3)
    faults = Faults(server, random.Random(options.seed), lasting_seconds, options.connections, only)
    if only is not None and (unknown := only - faults.kinds().keys()):
        raise SystemExit(f"no such fault: {', '.join(unknown)}; known: {', '.join(faults.kinds())}")
    samples: list[Sample] = []
    load.start()
    began, last_failures = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        load.resume()
        await faults.burst(round_seconds - SETTLING_SECONDS, options.every, kills=elapsed < seconds / 2)
        await asyncio.sleep(5.0)  # answers after the last fault
        await load.pause()
        await asyncio.sleep(SETTLING_SECONDS)
        taken = await asyncio.to_thread(sample, server, time.monotonic() - began)
        append_lines(options.out / "samples.jsonl", [asdict(each) for each in taken])  # whatever becomes of the report
        samples += taken
        failures = [each for each in load.exchanges if each.problem]
        print(f"{elapsed:.0f} s: {len(load.exchanges)} requests, {len(failures)} failed; {faults.counts}", flush=True)
        for each in failures[last_failures:][:5]:
            print(f"    {each.ended - began:.1f} s: {each.problem[:300]}", flush=True)
        last_failures = len(failures)
    await load.close()
    print(f"stopped: {await asyncio.to_thread(server.stop)}", flush=True)
    return make_report(server, faults, load.exchanges, samples, min(REFERENCE_SECONDS, seconds / 10))


def campaign(options: argparse.Namespace) -> dict[str, Any]:
    """Run a campaign and write its report."""
    options.out.mkdir(parents=True, exist_ok=True)
    with serving(options.replicas, options.token_seconds) as server:
        report = asyncio.run(disturb(server, options))
        write_report(report, options.out)
        for name, text in server.log_text():
            target = options.out / name.replace("/", "-")
            target.write_text(text)
    return report


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--every", type=float, default=6.0, help="mean seconds between two faults of a burst")
    parser.add_argument("--token-seconds", type=float, default=0.01, help="seconds that the engine takes for a token")
    parser.add_argument("--connections", type=int, default=9_800, help="idle ones; an endpoint takes 10,000")
    parser.add_argument("--faults", default="", help="only these, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("build/campaign"), help="folder for the report and the logs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the run, its disks and its processes are removed
    result = campaign(parse())
    print(as_text(result))
    sys.exit(bool(result["missed"]))

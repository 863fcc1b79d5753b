"""Seconds to submit a thousand runs and to list them, process start included, with a scheduler that answers at once.

    python -m tests.benchmarks.bench_many_runs [--runs 1000] [--profile]

Prints one JSON object, wall clock and CPU; --profile prints where the time of each command goes instead.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.fakes.token_files import write_dataset

ROOT = Path(__file__).parents[2]


def prepare(home: Path) -> dict[str, str]:
    """A data set and a cluster whose scheduler is made up; the environment in which `--on fake` finds it."""
    plugin = home / "plugin/fake-1.0.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "entry_points.txt").write_text("[ropewalk.backends]\nfake = tests.fakes.backend:FakeBackend\n")
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    clusters = {"fake": {"backend": "fake", "log": str(home / "asked.jsonl"), "ships_code": True}}
    (home / "clusters.yaml").write_text(yaml.safe_dump(clusters))
    write_dataset(home / "data", [5000], [600])
    variables = {"ROPEWALK_RUNS": str(home / "runs"), "ROPEWALK_CLUSTERS": str(home / "clusters.yaml"), "COLUMNS": "200"}
    return {**os.environ, **variables, "PYTHONPATH": f"{home / 'plugin'}:{ROOT}"}


def main() -> None:
    """Submit once, list a few times, print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environment = prepare(home)
        base = [sys.executable, *(["-m", "cProfile", "-s", "tottime"] if options.profile else []), "-m", "ropewalk.jobs.cli"]

        def seconds(*words_given: str) -> tuple[float, float]:
            started, before = time.perf_counter(), os.times()
            done = subprocess.run([*base, *words_given], env=environment, cwd=home, check=True, capture_output=True, text=True)
            taken = time.perf_counter() - started
            if options.profile:
                lines = done.stdout.splitlines()
                head = next(k for k, line in enumerate(lines) if "function calls" in line)
                print("\n".join([" ".join(words_given), *lines[head : head + 40]]))
            else:
                assert len(done.stdout) > 20 * options.runs, done.stdout
            after = os.times()
            busy = after.children_user + after.children_system - before.children_user - before.children_system
            return round(taken, 3), round(busy, 3)

        job = ("pretrain", "data=data", "steps=3", "seq_len=16", "--on", "fake")
        figures = {"submit": seconds("submit", *job, "--each", f"seed=1..{options.runs}")}
        for name, arguments in {"ps": ["ps"], "ps --json": ["ps", "--json"]}.items():
            figures[name] = min(seconds(*arguments) for _ in range(1 if options.profile else 5))
    if not options.profile:
        named = {name: {"wall": wall, "cpu": busy} for name, (wall, busy) in figures.items()}
        print(json.dumps({"runs": options.runs, **named}))


if __name__ == "__main__":
    main()

"""Cost of submitting functions, against submitit on the same test cluster: many as one array, many one by one, and one by
a process of its own.

    python -m tests.benchmarks.bench_submit [--functions 1000] [--single 1000] [--rounds 7] [--folder DIR]

Prints one JSON object of CPU seconds (with those of sbatch and git) and wall seconds. All jobs are held, so that none disturbs.
The processes are run in turn; their ratio is the median of the ratios of neighbours. They work in a small repository that
neither writes into: submitit's files lie beside it, else each of its submissions would be a change of the code that ours copies.

Measured: 2026-11-28, a quiet machine. Each of our functions is a run with a directory of its own; pydantic and a first model
of it take 0.13 s of the 0.31 s.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import submitit
import yaml

import ropewalk
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.config import LabSettings
from tests.fakes.programs.functions import add

ROOT = Path(__file__).parents[2]

OURS = "import ropewalk; from tests.fakes.programs.functions import add; ropewalk.submit(add, 1, 2, on='lab')"
THEIRS = """
import submitit
from tests.fakes.programs.functions import add
executor = submitit.SlurmExecutor(folder='../submitit', max_num_timeout=0)
executor.update_parameters(additional_parameters={'hold': True})
executor.submit(add, 1, 2)
"""


def cpu_and_wall(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of this process and of the children that it waits for, and by the clock."""

    def spent() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    before, started = spent(), time.perf_counter()
    work()
    return spent() - before, time.perf_counter() - started


def executor(folder: Path) -> submitit.SlurmExecutor:
    slurm_executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=0)
    slurm_executor.update_parameters(additional_parameters={"hold": True})
    return slurm_executor


def project(folder: Path) -> Path:
    """A repository of a few files, as somebody's own program has them."""
    created = folder / "project"
    created.mkdir()
    for number in range(20):
        (created / f"module_{number}.py").write_text(f"NUMBER = {number}\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=created, check=True)
    return created


def process(code: str) -> Callable[[], object]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return lambda: subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def compared(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> dict[str, float]:
    """Both in turn: medians, and the median of the ratios of neighbours."""
    pairs = [(cpu_and_wall(ours), cpu_and_wall(theirs)) for _ in range(rounds)]
    results = {}
    for position, name in enumerate(("cpu", "wall")):
        results[f"{name}_seconds"] = statistics.median(mine[position] for mine, _ in pairs)
        results[f"submitit_{name}_seconds"] = statistics.median(other[position] for _, other in pairs)
        results[f"{name}_ratio"] = statistics.median(mine[position] / other[position] for mine, other in pairs)
    return {key: round(value, 3) for key, value in results.items()}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    numbers = range(arguments.functions)
    peer = executor(folder / "submitit")
    return {
        "one process": compared(process(OURS), process(THEIRS), arguments.rounds),
        f"{arguments.functions} as one array": compared(
            lambda: ropewalk.map(add, numbers, numbers, on="lab"), lambda: peer.map_array(add, numbers, numbers), 3
        ),
        f"{arguments.single} one by one": compared(
            lambda: [ropewalk.submit(add, number, 1, on="lab") for number in range(arguments.single)],
            lambda: [peer.submit(add, number, 1) for number in range(arguments.single)],
            1,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=1000)
    parser.add_argument("--single", type=int, default=100, help="submissions one by one")
    parser.add_argument("--rounds", type=int, default=7, help="of the process of its own")
    parser.add_argument("--folder", type=Path, help="where runs are written; unset: the temporary directory")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    directory.chmod(0o755)
    folder = Path(tempfile.mkdtemp(prefix="submit", dir=options.folder))
    lab = Lab(directory)
    try:
        lab.up(LabSettings(nodes=2))
        os.environ.update(lab.env)
        os.environ["ROPEWALK_CLUSTERS"] = str(folder / "clusters.yaml")
        profile = {"backend": "slurm", "runs": str(folder / "runs"), "python": sys.executable, "sbatch": {"hold": True}}
        (folder / "clusters.yaml").write_text(yaml.safe_dump({"lab": profile}))
        os.chdir(project(folder))
        print(json.dumps(measure(options, folder)))
    finally:
        subprocess.run(["scancel", "--me"], check=False, capture_output=True)
        lab.down()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

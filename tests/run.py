"""Run the tests on parallel workers, repeat failures alone, and record those that then pass as flaky.

python -m tests.run            ruff, mypy, and every test that is not marked soak (make test)
python -m tests.run --soak     the tests marked soak (make soak)
python -m tests.run ARGS...    the same rules for a selection; ARGS are pytest's
"""

import compileall
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAKY = ROOT / "tests/flaky.jsonl"
ALLOWED_FLAKES = 2  # records of one test; the next time it is a failure
MOST_RETRIED = 12  # more failures than this have a common cause
WORKERS, SOAK_WORKERS = 6, 2  # for two cores: most tests wait for Slurm, Kubernetes, Ray or training steps


class Outcomes:
    """A pytest plug-in that collects the failures, with the first line of each error, and the tests that passed."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.passed: set[str] = set()

    def pytest_configure(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            lines = report.longreprtext.splitlines()
            errors = [line[1:].strip() for line in lines if line.startswith("E ")]
            self.failed.setdefault(report.nodeid, [*errors, *lines, "no message"][0][:160])
            terminal = self.config.pluginmanager.getplugin("terminalreporter")
            terminal.write_line(f"\nfailed: {report.nodeid}: {self.failed[report.nodeid]}")
        elif report.passed and report.when == "call":
            self.passed.add(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport


def run_pytest(*arguments: str) -> tuple[int, Outcomes]:
    outcomes = Outcomes()
    return int(pytest.main(["-p", "no:cacheprovider", "--color=no", *arguments], plugins=[outcomes])), outcomes


def main() -> int:
    """Return the exit code: 0 if everything passed, at once or when repeated alone."""
    soak, selection = "--soak" in sys.argv, [argument for argument in sys.argv[1:] if argument != "--soak"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other would keep the cores from other workers
    sys.dont_write_bytecode = False  # else each of thousands of processes would compile torch, ray and transformers
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.chdir(ROOT)
    for package in ROOT.glob("*/__init__.py"):  # else each of thousands of processes would compile it; pytest rewrites tests
        compileall.compile_dir(package.parent, quiet=2, workers=0, rx=re.compile(r"/(test_\w+|conftest)\.py$"))
    tools = ("ruff check .", "ruff format --check .", "mypy", "python -m tests.english")  # as `make lint`
    command = " && ".join(f"nice {Path(sys.executable).parent}/{tool}" for tool in tools)  # the tests take longer
    lint = None if soak or selection else subprocess.Popen(command, shell=True)
    kernels = None if selection else subprocess.Popen([sys.executable, "-m", "tests.compiled"])  # else the workers wait for it
    report = f"--junitxml=build/tests/{'soak' if soak else 'test'}.xml"
    marked = [] if "::" in "".join(selection) else ["-m", "soak" if soak else "not soak"]
    workers = f"--workers={SOAK_WORKERS if soak else WORKERS}"
    code, first = run_pytest(workers, "--durations=40", report, *marked, *selection)
    lint_failed = lint is not None and lint.wait() != 0
    if kernels is not None:
        kernels.wait()
    verdict = dict.fromkeys(first.failed, "failed")
    if code == pytest.ExitCode.TESTS_FAILED and 0 < len(first.failed) <= MOST_RETRIED:
        print(f"{len(first.failed)} failed; once more, alone", flush=True)
        _, again = run_pytest(*first.failed)
        records = [json.loads(line)["test"] for line in FLAKY.read_text().splitlines()] if FLAKY.exists() else []
        for test in first.failed:
            if test in again.passed and test not in again.failed:
                verdict[test] = "flaky" if records.count(test) < ALLOWED_FLAKES else "flaky too often"
            else:
                verdict[test] = "failed twice"
        code = int(set(verdict.values()) != {"flaky"})
    if lint_failed:
        print("failed: lint")
    for test, reason in sorted(first.failed.items(), key=lambda item: verdict[item[0]] == "flaky"):
        print(f"{verdict[test]}: {test}, first failure: {reason}")
        if verdict[test] == "flaky":
            with FLAKY.open("a") as stream:
                stream.write(json.dumps({"test": test, "when": time.strftime("%Y-%m-%d"), "reason": reason}) + "\n")
    return code or int(lint_failed)


if __name__ == "__main__":
    sys.exit(main())

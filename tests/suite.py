"""The suite: parts of it beside each other, then whatever failed once more, alone, on a quiet machine.

python -m tests.suite                what protects every change, with ruff and mypy (make test)
python -m tests.suite --soak         what is long, repeated or left to chance (make soak)
python -m tests.suite PATH...        any part of it
A test that fails and then passes alone is flaky: the suite passes, its last lines say so, and it goes on record (flaky.jsonl).
"""

import argparse
import compileall
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tests.findings import (
    ALLOWED_FLAKES,
    Finding,
    Part,
    add_flake,
    keep_evidence,
    read_part,
    report_lines,
    skips,
    slowest,
    times_flaky,
)
from tests.patience import slowness
from tests.recording import RECORD_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
FLAKES = "tests/flaky.jsonl"
OUTPUT = "build/tests"
LINT = "bin/ruff check . && bin/ruff format --check . && bin/mypy"
# At a time so many: most tests wait for Slurm, Kubernetes, Ray or steps. The longest are started first.
AT_ONCE, SOAK_AT_ONCE = 3, 2
PARTS: dict[str, tuple[str, ...]] = {
    "kubernetes": ("tests/k8s",),
    "slurm": ("tests/slurm", "tests/chaos/test_slurm.py"),
    "runs": ("tests/cluster", "tests/chaos/test_spine.py", "tests/chaos/test_shared_files.py"),
    "sweeps": ("tests/jobs/orchestration/sweep", "tests/chaos/test_*sweep*.py"),
    "data": ("tests/datapipe",),
    "benchmarks": ("tests/benchmarks",),
    "models": (
        *(
            "tests/jobs/training/align",
            "tests/jobs/training/finetune",
            "tests/jobs/evaluation/evaluate",
            "tests/jobs/evaluation/audit",
            "tests/jobs/inference/scoring",
        ),
        *("tests/chaos/test_align.py", "tests/chaos/test_finetune.py", "tests/chaos/test_grpo.py"),
    ),
    "serving": (
        *(
            "tests/jobs/serving/serve",
            "tests/jobs/inference/engines",
            "tests/jobs/serving/feedback",
            "tests/jobs/models/registry",
            "tests/jobs/serving/refresh",
        ),
        *("tests/jobs/serving/drift", "tests/jobs/serving/collect", "tests/chaos/test_refresh.py"),
    ),
    "smaller models": (
        *(
            "tests/jobs/training/distill",
            "tests/jobs/models/compress",
            "tests/jobs/training/pruning",
            "tests/jobs/inference/gguf",
            "tests/chaos/test_distill.py",
        ),
    ),
    "rest": ("tests/test_*.py", "tests/jobs", "tests/sharding"),
}
# in this order: the longest first, so that at the end there are others to fill the cores
STARTED = ("rest", "kubernetes", "models", "slurm", "data", "sweeps", "runs", "serving", "smaller models", "benchmarks")
NOTHING_COLLECTED = 5
QUIET_SECONDS = 2.0  # for so long nobody but us must want to run
QUIET_PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.5
TELL_SECONDS = 30.0
LEAVE_SECONDS = 60.0
MANY = 12  # more failures than this are no accident, and are not tried again


@dataclass
class Running:
    """A process of one part."""

    name: str
    process: subprocess.Popen[bytes]
    record: Path
    log: Path
    began: float = field(default_factory=time.monotonic)


def main() -> None:
    """Run what the command line asks for; exit with 1 if anything failed twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="tests to run; none: all of them")
    parser.add_argument("--soak", action="store_true", help="run what is marked as soak, instead of the rest")
    parser.add_argument("--at-once", type=int, default=None, help="so many parts at a time")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it, and its children
    at_once = given.at_once or (SOAK_AT_ONCE if given.soak else AT_ONCE)
    sys.exit(Suite(given.paths, soak=given.soak, at_once=at_once).run())


class Suite:
    """One run of the suite."""

    def __init__(self, paths: Sequence[str], *, soak: bool, at_once: int, root: Path = ROOT) -> None:
        self.soak, self.at_once, self.root, self.flakes = soak, at_once, root, root / FLAKES
        self.console = Console(highlight=False, soft_wrap=True)
        self.folder = root / OUTPUT / ("soak" if soak else "test")
        self.waiting = {"these": tuple(paths)} if paths else {name: files_of(name) for name in STARTED}
        self.lint = not paths and not soak
        self.running: list[Running] = []
        self.parts: list[Part] = []
        self.broken: list[str] = []  # what failed besides tests
        self.told: set[str] = set()
        self.tried_again = True
        self.began = time.monotonic()

    def run(self) -> int:
        """Everything, once; then the failures, alone; then the report. The exit code."""
        with claimed(self.folder) as self.folder:
            for old in [*self.folder.glob("*.jsonl"), *self.folder.glob("*.txt"), *self.folder.glob("*.log")]:
                old.unlink()
            compile_program()
            try:
                self._run_all()
                failed, flaky = self._try_again([finding for part in self.parts for finding in part.failed])
            finally:
                self._end_running()
            return self._conclude(failed, flaky)

    def _end_running(self) -> None:
        """Where the suite is stopped: let each pytest take down its clusters."""
        for each in self.running:
            each.process.send_signal(signal.SIGINT)
        for each in self.running:
            with suppress(subprocess.TimeoutExpired):
                each.process.wait(LEAVE_SECONDS)
            each.process.kill()

    # --- all parts

    def _run_all(self) -> None:
        if self.lint:
            self.running.append(self._start_lint())
        next_word = time.monotonic() + TELL_SECONDS
        while self.running or self.waiting:
            while self.waiting and len(self.running) < self.at_once:
                name = next(iter(self.waiting))
                self.running.append(self._start(name, self.waiting.pop(name)))
            for each in [each for each in self.running if each.process.poll() is not None]:
                self.running.remove(each)
                self._collect(each)
            self._tell_failures()
            if time.monotonic() > next_word:
                next_word += TELL_SECONDS
                self._tell_progress()
            time.sleep(LOOK_SECONDS)

    def _start_lint(self) -> Running:
        log = self.folder / "lint.log"
        command = LINT.replace("bin/", f"{Path(sys.executable).parent}/")
        with log.open("wb") as stream:
            process = subprocess.Popen(["bash", "-c", command], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        return Running("lint", process, self.folder / "lint.jsonl", log)

    def _start(self, name: str, words: Sequence[str]) -> Running:
        record, log = self.folder / f"{name}.jsonl", self.folder / f"{name}.log"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.recording", "--color=no"]
        command += [] if "::" in "".join(words) else ["-m", "soak" if self.soak else "not soak"]
        # parts share the cores: threads of one that wait for each other would keep them from the others
        environment = {"OMP_NUM_THREADS": "1", **os.environ, RECORD_VARIABLE: str(record)}
        if self.root != ROOT:  # else it is where pytest stands, and programs that tests start shall not see it
            environment["PYTHONPATH"] = str(ROOT)
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*command, *words],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        return Running(name, process, record, log)

    def _collect(self, each: Running) -> None:
        """A part has ended: what it found, and whether it ended as it should."""
        code = each.process.returncode
        seconds = time.monotonic() - each.began
        if each.name == "lint":
            if code:
                self.broken.append("lint")
                self.console.print(each.log.read_text(errors="replace"), markup=False)
            self._say(f"lint: {'failed' if code else 'well'}, {seconds:.0f} s")
            return
        part = read_part(each.name, each.record)
        self.parts.append(part)
        if code not in (0, NOTHING_COLLECTED) and not part.failed:
            self.broken.append(f"{each.name} (pytest ended with {code})")
            self.console.print(each.log.read_text(errors="replace")[-5000:], markup=False)
        self._say(f"{each.name}: {part.over} of {part.collected} tests, {len(part.failed)} failed, {seconds:.0f} s")

    # --- what failed, once more

    def _try_again(self, failed: list[Finding]) -> tuple[list[Finding], list[Finding]]:
        """(Those that failed twice, those that passed when they were alone)."""
        if len(failed) > MANY:
            self._say(f"{len(failed)} failures are no accident: none is tried again")
            self.tried_again = False
            return failed, []
        twice, flaky = [], []
        for number, finding in enumerate(failed):
            keep_evidence(self.folder, finding)
            self._say(f"once more, alone: {finding.name}")
            await_quiet()
            again = self._start(f"again-{number}", [finding.name])
            self.running.append(again)
            again.process.wait()
            self.running.remove(again)
            second = read_part(again.name, again.record)
            # skipped is not passed: what broke may be what it stands on
            passed = any(each.outcome == "passed" for each in second.findings.values()) and not second.failed
            if passed and times_flaky(self.flakes, finding.name) < ALLOWED_FLAKES:
                flaky.append(finding)
            else:
                told = "it was flaky too often: mend it, or mark it as soak" if passed else self._second_words(second)
                finding.text += f"\n--- the second time, alone:\n{told}"
                twice.append(finding)
        return twice, flaky

    @staticmethod
    def _second_words(part: Part) -> str:
        told = [finding.text for finding in part.findings.values() if finding.outcome != "passed"]
        return "\n".join(told) or "pytest did not find it, or died"

    # --- words

    def _say(self, words: str) -> None:
        spent = time.monotonic() - self.began
        self.console.print(f"{int(spent // 60):3d}:{int(spent % 60):02d}  {words}", markup=False)

    def _tell_progress(self) -> None:
        parts = [read_part(each.name, each.record) for each in self.running if each.name != "lint"]
        told = [f"{part.name} {part.over}/{part.collected or '?'}" for part in parts]
        self._say(", ".join([*told, *(f"{name} waits" for name in self.waiting)]))

    def _tell_failures(self) -> None:
        for part in [*self.parts, *(read_part(each.name, each.record) for each in self.running)]:
            for finding in part.failed:
                if finding.outcome == "failed" and finding.name not in self.told:
                    self.told.add(finding.name)
                    self._say(f"failed: {finding.name}: {finding.reason}")

    def _conclude(self, failed: list[Finding], flaky: list[Finding]) -> int:
        everything = [finding for part in self.parts for finding in part.findings.values()]
        title = f"{'soak' if self.soak else 'test'}, {time.strftime('%Y-%m-%d %H:%M')}, {_commit()}"
        report = self.folder.with_suffix(".md")
        report.write_text("\n".join([*report_lines(title, self.parts, flaky, failed), ""]))
        for finding in [*failed, *flaky]:
            self.console.rule(escape(finding.name))
            self.console.print(finding.text, markup=False)
        self.console.rule("the slowest")
        for line in [*slowest(everything, 15), *skips(everything)]:
            self.console.print(line, markup=False)
        spent, passed = time.monotonic() - self.began, sum(finding.outcome == "passed" for finding in everything)
        state = "failed" if failed or self.broken else "passed"
        self.console.print(
            f"{state}: {passed} of {len(everything)} tests, {spent / 60:.1f} minutes; {report.relative_to(self.root)}"
        )
        for words in self.broken:
            self.console.print(f"failed: {words}", markup=False)
        for finding in failed:
            self.console.print(f"failed: {finding.name}{', twice' if self.tried_again else ''}: {finding.reason}", markup=False)
        for finding in flaky:
            add_flake(self.flakes, finding, time.strftime("%Y-%m-%d"))
            evidence = keep_evidence(self.folder, finding).relative_to(self.root)
            self.console.print(f"flaky: {finding.name}, first failure: {finding.reason} ({evidence})", markup=False)
        return int(bool(failed or self.broken))


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Hold a folder to which no other suite of this checkout writes: this one, or another with a number behind its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        mine = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with mine.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            mine.mkdir(exist_ok=True)
            yield mine
            return


def files_of(part: str) -> tuple[str, ...]:
    """The paths and options of pytest that a part stands for: each test file is in the first part that names it."""
    own = {path for word in PARTS[part] for path in expand(word)}
    for other, words in PARTS.items():
        if other == part:
            break
        own -= {path for word in words for path in expand(word)}
    return tuple(sorted(str(path.relative_to(ROOT)) for path in own))


def expand(word: str) -> set[Path]:
    """The test files that a path or pattern of the table means."""
    return {file for path in ROOT.glob(word) for file in ([path] if path.is_file() else path.rglob("test_*.py"))}


def compile_program() -> None:
    """Write the byte code of the checkout: where PYTHONDONTWRITEBYTECODE is set, each of thousands of processes would make it."""
    for folder in sorted({path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/__init__.py")}):
        compileall.compile_dir(ROOT / folder, quiet=2, workers=0)


def await_quiet() -> None:
    """Wait until nothing else wants to run, for a moment; not for ever."""
    deadline, quiet_since = time.monotonic() + QUIET_PATIENCE_SECONDS, time.monotonic()
    while time.monotonic() - quiet_since < QUIET_SECONDS and time.monotonic() < deadline:
        if slowness() > 1.0:
            quiet_since = time.monotonic()
        time.sleep(LOOK_SECONDS)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no commit"


if __name__ == "__main__":
    main()

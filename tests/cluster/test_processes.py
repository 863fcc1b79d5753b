"""Signals: flags that their handlers set, and children that do not hear them yet."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.forking import fork_program
from ropewalk.cluster.process.kill import end, family, processes_of, writers_of
from ropewalk.cluster.process.signals import STOP_SIGNALS, stop_signals_blocked
from tests.patience import HANG_SECONDS, Patience, until

ROOT = Path(__file__).parents[2]

# a second signal at every line that the handler of the first one runs through
INTERRUPTED = """
import signal, sys
from ropewalk.cluster.process.signals import SignalFlag

flag = SignalFlag()
signal.signal(signal.SIGUSR2, lambda *_: flag.set())

def interrupt(frame, event, argument):
    if event == "line":
        signal.raise_signal(signal.SIGUSR2)
    return interrupt

sys.settrace(interrupt)
flag.set()
assert flag.wait(0.0)
"""


def test_a_signal_within_a_signal_does_not_hang() -> None:
    """Slurm sends TERM and the job's own signal together; the handler of an Event waits for itself then."""
    assert subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=HANG_SECONDS, check=False).returncode == 0


# as a program of this package starts: imports first
LATE = """
import signal, sys, time
from ropewalk.cluster.process.signals import install_stop_handler

def main():
    open(sys.argv[1], "w").close()
    while not signal.sigpending():
        time.sleep(0.01)
    install_stop_handler(lambda: sys.exit(7))
    time.sleep(60)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("word", sorted(STOP_SIGNALS))
def test_a_stop_that_comes_while_a_program_starts_is_kept(tmp_path: Path, word: signal.Signals) -> None:
    """The program would die of the signal, and its node would seem lost."""
    (tmp_path / "late.py").write_text(LATE)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def command(way: str) -> list[str]:
        return module_command("late", str(tmp_path / way))

    with stop_signals_blocked():
        anew = subprocess.Popen(command("anew"), env=environment)
    forked = fork_program(command("forked"), environment, tmp_path / "said")
    for way, process in (("anew", anew), ("forked", forked)):
        until((tmp_path / way).exists, Patience.START)  # it runs, and waits for a signal that it does not hear yet
        process.send_signal(word)
        assert process.wait(HANG_SECONDS) == 7


def test_the_processes_that_write_a_log_are_found_by_it(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    with log.open("wb") as stream:
        parent = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], stdout=stream)
    try:
        until(lambda: len(writers_of(log)) == 2)
        assert writers_of(log)[0].pid == parent.pid, "the oldest first"
        assert writers_of(tmp_path / "rank-1.log") == []
    finally:
        end(family(parent.pid))
        parent.wait()


def test_a_place_names_no_other_whose_name_begins_like_its_own(tmp_path: Path) -> None:
    """Ending node 1 does not kill processes of node 10."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = [subprocess.Popen([*command, str(tmp_path / name)]) for name in ("n1", "n1/inside", "n10", "n10/inside")]
    try:
        until(lambda: len(processes_of(tmp_path)) == 4, Patience.SIGNAL)
        assert {process.pid for process in processes_of(tmp_path / "n1")} == {process.pid for process in started[:2]}
    finally:
        for process in started:
            process.kill()
            process.wait()

"""Flags that signal handlers set."""

import subprocess
import sys

# a second signal at every line that the handler of the first one runs through
INTERRUPTED = """
import signal, sys
from cluster.processes import Flag

flag = Flag()
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
    assert subprocess.run([sys.executable, "-c", INTERRUPTED], timeout=10, check=False).returncode == 0

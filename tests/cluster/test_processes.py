"""Flags that signal handlers set."""

import signal
import subprocess
import sys
import time

PAIRS = 3000

LISTENER = """
import signal, sys
from cluster.processes import Flag
flag = Flag()
for word in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(word, lambda *_: flag.set())
print("ready", flush=True)
for _ in sys.stdin:
    while not flag.wait(0.001):
        pass
    flag.clear()
    print("heard", flush=True)
"""


def test_signals_that_come_together_do_not_stop_each_other() -> None:
    """Slurm sends TERM and the job's own signal at once; an Event hangs in one of some thousand such pairs."""
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        ends = time.monotonic() + 60
        for _ in range(PAIRS):
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGUSR2)
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.readline() == "heard\n"
        assert process.wait(timeout=max(0.0, ends - time.monotonic())) == 0

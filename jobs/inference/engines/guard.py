"""Run a program that ends, with its children, when its parent does.

Usage: python -m ropewalk.jobs.inference.engines.guard -- PROGRAM...
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

from ropewalk.cluster.process.kill import end, family

LEAVE_SECONDS = 5.0


def main() -> int:
    """Run the program until it or the parent ends, or this process receives SIGTERM."""
    parent_pidfd = os.pidfd_open(os.getppid())
    program = subprocess.Popen(sys.argv[sys.argv.index("--") + 1 :], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: program.terminate())
    program_pidfd = os.pidfd_open(program.pid)
    ready, _, _ = select.select([parent_pidfd, program_pidfd], [], [])
    if program_pidfd not in ready:
        everyone = family(program.pid)
        program.terminate()
        with suppress(subprocess.TimeoutExpired):
            program.wait(LEAVE_SECONDS)
        end(everyone)
    return program.wait()


if __name__ == "__main__":
    sys.exit(main())

"""Runs a command of kubectl beside a second one that notices the end of this process, even by SIGKILL.

Kubernetes leaves the processes of an exec alone when its client is gone. The guard's program in the pod ends them once its
standard input ends, which this process holds.

python -m ropewalk.k8s.guarded GUARD COMMAND, each as one word
"""

import contextlib
import shlex
import signal
import subprocess
import sys

GUARD_SECONDS = 10.0  # for the guard to end what the command has left behind


def main() -> None:
    """Run the command at this terminal, and exit with its code."""
    guard, command = map(shlex.split, sys.argv[1:3])
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # kubectl passes them on
    silent = subprocess.DEVNULL
    with subprocess.Popen(guard, stdin=subprocess.PIPE, stdout=silent, stderr=silent, start_new_session=True) as watcher:
        code = subprocess.run(command, check=False).returncode
        assert watcher.stdin is not None
        watcher.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            watcher.wait(GUARD_SECONDS)
        watcher.kill()
    sys.exit(code)


if __name__ == "__main__":
    main()

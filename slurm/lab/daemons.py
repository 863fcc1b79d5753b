"""Start a test cluster's daemons as nobody's children, end them, and ask them things."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import BackendError
from ropewalk.slurm.lab.processes import MARK, kill_all, marked

PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"  # Debian keeps daemons where no user looks
START_SECONDS = 30.0


class Daemons:
    """The daemons of the lab in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "etc/slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """What Slurm's commands need in their environment to find this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def launch(self, what: str, *words: str, foreground: bool = False) -> None:
        """Start `what` and return when it has gone into the background; one that stays in the foreground is put there."""
        if foreground:
            words = ("setsid", "--fork", *words)
        environment = {"PATH": PATH, "HOME": os.environ.get("HOME", "/"), **self.env, MARK: f"{self.folder}:{what}"}
        with (self.folder / "log/start.log").open("ab") as log:  # not a pipe of ours: whoever reads that would wait for ever
            done = subprocess.run(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                check=False,
            )
        if done.returncode:
            raise BackendError(f"{words[0]} did not start: exit code {done.returncode}; {self.last_words()}")

    def kill(self, what: str) -> None:
        """Kill one daemon."""
        kill_all(lambda: marked(self.folder, what))

    def command(self, *words: str, seconds: float = 30.0) -> str:
        """Run a command against this cluster; its output. BackendError if it fails."""
        environment = {**os.environ, **self.env, "PATH": f"{PATH}:{os.environ.get('PATH', '')}"}
        try:
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise BackendError(f"{' '.join(words)}: no answer within {seconds:g} s; is the lab up?") from None
        if done.returncode:
            raise BackendError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def answers(self, *words: str) -> bool:
        """Whether a command succeeds."""
        try:
            self.command(*words)
        except BackendError:
            return False
        return True

    def wait_until(self, condition: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> None:
        """Wait for a condition; BackendError with the daemons' last words if it does not come."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise BackendError(f"{self.folder}: waited {seconds:g} s in vain until {what}; {self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        """The last error in every daemon's log."""
        ends = []
        for path in sorted((self.folder / "log").glob("*.log")):
            lines = [line for line in path.read_text(errors="replace").splitlines() if "error" in line.lower()]
            ends += [f"{path.name}: {lines[-1]}"] if lines else []
        return "; ".join(ends) or f"no errors in {self.folder}/log"

"""Starts the daemons of a test cluster in the background, stops them, and runs commands against the cluster."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import BackendError
from ropewalk.slurm.lab.processes import MARK, kill_all, lab_processes

PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"  # Debian installs the daemons in sbin
START_SECONDS = 30.0


class Daemons:
    """Daemons of the lab in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "etc/slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with which Slurm's commands use this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def launch(self, name: str, *command: str, foreground: bool = False) -> None:
        """Start a daemon and return once it runs in the background; `foreground` is for daemons that do not fork themselves."""
        if foreground:
            command = ("setsid", "--fork", *command)
        environment = {"PATH": PATH, "HOME": os.environ.get("HOME", "/"), **self.env, MARK: f"{self.folder}:{name}"}
        with (self.folder / "log/start.log").open("ab") as log:  # a pipe would stay open as long as the daemon runs
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                check=False,
            )
        if done.returncode:
            raise BackendError(f"{command[0]} did not start: exit code {done.returncode}; {self.last_errors()}")

    def kill(self, name: str) -> None:
        kill_all(lambda: lab_processes(self.folder, name))

    def command(self, *arguments: str, seconds: float = 30.0) -> str:
        """Run a command against this cluster and return its output. Raises BackendError if it fails."""
        environment = {**os.environ, **self.env, "PATH": f"{PATH}:{os.environ.get('PATH', '')}"}
        try:
            done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise BackendError(f"{' '.join(arguments)}: no answer within {seconds:g} s; does the lab run?") from None
        if done.returncode:
            raise BackendError(f"{' '.join(arguments)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def answers(self, *arguments: str) -> bool:
        try:
            self.command(*arguments)
        except BackendError:
            return False
        return True

    def wait_until(self, condition: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> None:
        """Wait for a condition. Raises BackendError with the daemons' last errors after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise BackendError(f"{self.folder}: waited {seconds:g} s in vain until {what}; {self.last_errors()}")
            time.sleep(0.02)

    def last_errors(self) -> str:
        ends = []
        for path in sorted((self.folder / "log").glob("*.log")):
            lines = [line for line in path.read_text(errors="replace").splitlines() if "error" in line.lower()]
            ends += [f"{path.name}: {lines[-1]}"] if lines else []
        return "; ".join(ends) or f"no errors in {self.folder}/log"

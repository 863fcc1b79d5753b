"""The `preprocess` job in a process group of its own, to be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.patience import HANG_SECONDS
from tests.processes import words_of


class Driver:
    """The job in a process group of its own."""

    def __init__(self, run_dir: Path) -> None:
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        self.log = (run_dir / "driver.log").open("ab")
        command = [sys.executable, "-m", "tests.fakes.drive", str(run_dir)]
        self.process = subprocess.Popen(command, start_new_session=True, env=env, stdout=self.log, stderr=self.log)
        self.name = run_dir / "driver.log"
        self.seen: set[psutil.Process] = set()  # all actors that were found

    def family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def actors(self) -> list[psutil.Process]:
        results = [p for p in self.family() if "_Actor" in " ".join(words_of(p))]
        self.seen.update(results)
        return results

    def wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, self.name.read_text()[-3000:]
            time.sleep(0.005)

    def kill(self) -> None:
        """kill -9 of the whole process group, and of nothing else; Ray's own processes must follow by themselves.

        So must actors that were found earlier, also where their parents were killed and they are in nobody's family any more.
        """
        self.actors()
        family = [*self.seen.union(self.family())]
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=HANG_SECONDS)
        for process in alive:
            process.kill()
        self.log.close()
        assert not alive, [words_of(p) for p in alive]

    def finish(self, timeout_seconds: float = HANG_SECONDS) -> None:
        assert self.process.wait(timeout=timeout_seconds) == 0, self.name.read_text()[-3000:]
        self.log.close()

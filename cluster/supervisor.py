"""The local scheduler: one detached process a run, which carries its attempts until it is done or out of retries.

Usage: python -m cluster.supervisor RUN_DIR
"""

import argparse
import json
import logging
import os
import secrets
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import Resources, Retries
from cluster.entry import configure_logging
from cluster.errors import EXIT_FAILED
from cluster.run_dir import RunDir
from cluster.spec import Outcome, RunState
from cluster.virtual_nodes import Attempt

log = logging.getLogger(__name__)


class Supervisor:
    """Attempts of one run, one after the other, until it is done or out of retries."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        request: dict[str, Any] = json.loads((run.path / "local.json").read_bytes())
        self.resources = Resources.model_validate(request["resources"])
        self.retries = Retries.model_validate(run.record["config"].get("retries") or {})
        self.after: list[str] = request["after"]
        self.number: int = request["attempt"]  # opened by whoever submitted, so that a resumed run has no outcome
        self.handle = f"local:{os.getpid()}"
        run.describe_attempt(self.number, handle=self.handle)
        self.ray_token = secrets.token_hex(32)  # lives in memory only
        self.stop = threading.Event()  # whoever runs this machine wants the run to stop
        self.leaving = False

    def supervise(self) -> None:
        """Run attempts until an outcome is final or nobody wants another."""
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, self._on_terminate)
        signal.signal(signal.SIGUSR2, lambda *_: self.stop.set())
        if not self._await_dependencies():
            return
        bugs = disturbances = 0
        number = self.number
        while True:
            retry_bugs = bugs < self.retries.bugs
            attempt = Attempt(self.run, number, self.resources, retry_bugs=retry_bugs, stop=self.stop, ray_token=self.ray_token)
            try:
                outcome = attempt.carry_out()
            except Exception as error:
                cause = f"the local backend failed: {type(error).__name__}: {error}"
                self.run.write_outcome(attempt.number, Outcome(state=RunState.FAILED, exit_code=EXIT_FAILED, cause=cause))
                raise
            log.info("attempt %d ended: %s (%s)", attempt.number, outcome.state, outcome.cause)
            if outcome.state.final or self.leaving:
                return
            bugs += outcome.exit_code == EXIT_FAILED
            disturbances += outcome.exit_code != EXIT_FAILED
            if disturbances > self.retries.disturbances:
                cause = f"{outcome.cause}; that was disturbance {disturbances}, retries.disturbances allows {disturbances - 1}"
                self.run.write_outcome(attempt.number, replace(outcome, state=RunState.FAILED, cause=cause))
                return
            resources = self.resources.model_dump(mode="json")
            number = self.run.begin_attempt(handle=self.handle, resources=resources, backend="local")

    def _on_terminate(self, number: int, frame: object) -> None:
        self.leaving = True
        self.stop.set()

    def _await_dependencies(self) -> bool:
        for word in self.after:
            other = RunDir(self.run.path.parent / word)
            while (outcome := other.last_outcome()) is None or not outcome.state.final:
                if self.run.cancel_requested or self.leaving:
                    return self._never_started("cancelled before it started")
                time.sleep(0.5)
            if outcome.state is not RunState.SUCCEEDED:
                return self._never_started(f"the run it waits for, {word}, ended as {outcome.state}")
        return True

    def _never_started(self, cause: str) -> bool:
        self.run.write_outcome(self.number, Outcome(state=RunState.CANCELLED, exit_code=0, cause=cause, ended=time.time()))
        return False


def main() -> None:
    """Supervise one run, detached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    run = RunDir(parser.parse_args().run_dir)
    configure_logging("supervisor")
    os.environ["PYTHONUNBUFFERED"] = "1"
    Supervisor(run).supervise()


if __name__ == "__main__":
    main()

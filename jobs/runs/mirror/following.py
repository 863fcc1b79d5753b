"""Mirroring of one attempt into W&B while it runs, until its end or until another process takes over."""

import logging
import os
import threading

from ropewalk.cluster.errors import EXIT_DONE, EXIT_FAILED, RopewalkError
from ropewalk.cluster.process.signals import SignalFlag, install_end_handler
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import poll_seconds
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.runs.mirror.mirror import Mirror, lease_of
from ropewalk.jobs.runs.mirror.server import unavailable_reason
from ropewalk.jobs.runs.notify.alerts import likely_ending
from ropewalk.jobs.runs.notify.lease import Lease

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
CLOSE_SECONDS = 8.0  # a server that is down must not block the agent


class Sidecar:
    """Mirrors one attempt until SIGHUP, the exit of its agent, or a newer attempt, and then the rest of the files."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self.run, self.attempt = run, attempt
        self._ended = SignalFlag()
        self._parent = os.getppid()
        self._lease: Lease | None = None

    def follow(self) -> None:
        """Mirror the attempt to its end."""
        install_end_handler(self._ended.set)
        pause_seconds = max(POLL_SECONDS, poll_seconds(self.run.path))
        mirror = self._open(pause_seconds)
        if mirror is None:
            return
        while not self._over():
            mirror.pump()
            if self._lease is not None and not self._lease.renew():
                log.warning("another process mirrors this run now")
                os._exit(EXIT_DONE)
            self._ended.wait(pause_seconds)
        self._close(mirror)

    def _open(self, pause_seconds: float) -> Mirror | None:
        """Return a mirror of this run, or None if the attempt ends while another process holds the lease."""
        away = "WANDB_MODE is offline" if os.environ.get("WANDB_MODE") == "offline" else unavailable_reason()
        if away:
            log.info("%s; writing offline files", away)
            return Mirror(self.run, self.attempt, offline=True, beside=True)
        lease = lease_of(self.run)
        while not lease.take():
            if self._over():
                return None
            self._ended.wait(pause_seconds)
        try:
            mirror = Mirror(self.run, self.attempt, offline=False, beside=True)
        except Exception as error:  # no error of wandb may affect training
            log.warning("W&B: %s; writing offline files", error)
            lease.give_up()
            return Mirror(self.run, self.attempt, offline=True, beside=True)
        self._lease = lease
        return mirror

    def _over(self) -> bool:
        orphaned = os.getppid() != self._parent
        return self._ended.is_set() or orphaned or self.run.attempts()[-1] > self.attempt

    def _close(self, mirror: Mirror) -> None:
        """Mirror the rest and close the W&B run, or leave the rest to `ropewalk sync`."""
        # wandb would retry for minutes if the server does not answer; everything is in the run's files
        watchdog = threading.Timer(CLOSE_SECONDS, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        node = read_json(self.run.attempt_dir(self.attempt) / "nodes" / "node-0.json") or {}
        outcome = self.run.outcome(self.attempt)
        code = outcome.exit_code if outcome else int(node.get("exit_code", EXIT_FAILED))
        mirror.finish(likely_ending(self.run, self.attempt), code)
        if self._lease is not None:
            try:
                if mirror.lines_at_server() == mirror.sent:
                    mirror.keep_complete(self.run.last_outcome())
            except RopewalkError as error:
                log.warning("%s", error)
            self._lease.give_up()
        watchdog.cancel()

    def _give_up(self) -> None:
        log.warning("W&B does not answer; `ropewalk sync` sends the rest later")
        if self._lease is not None:
            self._lease.give_up()
        os._exit(EXIT_DONE)

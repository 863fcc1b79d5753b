"""Sidecars of an attempt: processes beside the engine on its first node, such as the mirror to W&B."""

import logging
import os
import subprocess
import time
from pathlib import Path

from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.kill import family
from ropewalk.cluster.process.scratch import descriptors
from ropewalk.cluster.process.signals import END_SIGNAL, stop_signals_blocked
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.secrets.variables import RunSecrets

log = logging.getLogger(__name__)

END_SECONDS = 15.0  # for sidecars to finish at the end
NICE = 10


class Sidecars:
    """The sidecars that an agent has started."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, run: RunDir, attempt: int, scratch: Path, secrets: RunSecrets) -> None:
        """Start the sidecars that the run's record names."""
        for module in run.record.get("sidecars") or []:
            output = run.log_dir(attempt) / f"{module.rpartition('.')[2]}.log"
            with child_output(output, secrets) as stream, stop_signals_blocked(END_SIGNAL):
                sidecar = subprocess.Popen(
                    module_command(module, str(run.path), "--attempt", str(attempt)),
                    stdout=stream,
                    stderr=stream,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **secrets.environment},
                    start_new_session=True,
                    pass_fds=descriptors(scratch),  # keeps the folder of its temporary files if the agent is killed
                )
            # its imports would compete with the forming group for a second; under Ray the priority is already lower
            os.setpriority(os.PRIO_PROCESS, sidecar.pid, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
            self.processes.append(sidecar)

    def pids(self) -> set[int]:
        """Return the sidecars and their descendants."""
        return {process.pid for sidecar in self.processes for process in family(sidecar.pid)}

    def end(self) -> None:
        """Ask the sidecars to finish, and kill those that do not in time."""
        for sidecar in self.processes:
            sidecar.send_signal(END_SIGNAL)
        deadline = time.monotonic() + END_SECONDS
        for sidecar in self.processes:
            try:
                sidecar.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("sidecar %s did not end in %.0f s; killed", sidecar.args, END_SECONDS)
                sidecar.kill()

"""The process engine: a single process on the first node."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ropewalk.cluster.process.child_output import child_output
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.signals import stop_signals_blocked
from ropewalk.cluster.run.context import STOP_VARIABLE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.secrets.variables import RunSecrets


def run_process(
    run: RunDir, attempt: int, stop_flag: Path, secrets: RunSecrets, environment: Mapping[str, str] | None = None
) -> int:
    """Run the entry in a new process, and return its exit code (128 + signal number if it was killed)."""
    with child_output(run.log_dir(attempt) / "rank-0.log", secrets) as stream, stop_signals_blocked():
        process = subprocess.Popen(
            module_command(
                "ropewalk.cluster.engines.entry", str(run.path), "--attempt", str(attempt), "--parent", str(os.getpid())
            ),
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **secrets.environment, **(environment or {}), STOP_VARIABLE: str(stop_flag)},
        )
    code = process.wait()
    if code < 0:
        run.event("rank_lost", rank=0, node=0, exit_code=code, attempt=attempt)
        return 128 - code
    return code

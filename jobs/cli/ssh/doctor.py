"""Checks of `doctor` for a cluster that is reached through ssh: the connection, and what the login node says of itself."""

import json
import time

from ropewalk.cluster.backends.base import Check, Profile
from ropewalk.cluster.errors import BackendError
from ropewalk.jobs.cli.ssh.client import run_there
from ropewalk.slurm.ssh.frames import Kind


def checks_there(cluster: Profile) -> list[Check]:
    """Check the connection to a login node, and run `doctor` there."""
    output, started = bytearray(), time.monotonic()
    host = str(cluster.options["host"])

    def keep(kind: Kind, content: bytes) -> None:
        if kind is Kind.OUT:
            output.extend(content)

    try:
        run_there(cluster, ["doctor", "--on", cluster.name, "--json"], write=keep)
        answer = json.loads(output)
    except (BackendError, ValueError) as error:
        return [Check(name="ssh", ok=False, detail=str(error))]
    if "checks" not in answer:
        return [Check(name="ssh", ok=False, detail=f"{host}: {answer['error']['message']}")]
    seconds = time.monotonic() - started
    return [
        Check(name="ssh", ok=True, detail=f"{host} answers; with these checks it took {seconds:.1f} s"),
        *(Check(**check) for check in answer["checks"]),
    ]

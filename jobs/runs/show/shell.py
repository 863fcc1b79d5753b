"""Shells on the nodes of running runs."""

from collections.abc import Sequence

from ropewalk.cluster.backends.base import NodeProgram
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import parse_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.status import states

PROGRAM = "ropewalk.jobs.runs.program.shell"


def shell_command(run: RunDir, node: int, command: Sequence[str], *, terminal: bool) -> list[str]:
    """Return the command of this machine that opens a shell on a node of a run, or runs a command there.

    Raises ConfigError if the run does not run, or has no such node.
    """
    state = states([run])[run.id].state
    if state is not RunState.RUNNING:
        raise ConfigError(f"{run.id} is {state.lower()}: a shell needs a running run; `ropewalk why {run.id}` explains its state")
    lines = parse_lines(read_afresh(run.attempt_dir(run.attempts()[-1]) / AGENTS))[0]
    addresses = {int(line["node"]): str(line["address"]) for line in lines}
    if node not in addresses:
        nodes = ", ".join(map(str, sorted(addresses))) or "none yet"
        raise ConfigError(f"{run.id} has no node {node}; its nodes: {nodes}")
    backend = load_backend(str(run.record.get("cluster", "local")))
    program = NodeProgram(module=PROGRAM, node=node, address=addresses[node], command=command, terminal=terminal)
    return backend.shell_command(run, program)

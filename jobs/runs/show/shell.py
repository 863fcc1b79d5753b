"""Shells on the nodes of running runs."""

import time
from collections.abc import Callable, Sequence

from ropewalk.cluster.backends.base import NodeProgram
from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import parse_lines
from ropewalk.cluster.run.names import AGENTS
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.runs.show.follow import POLL_SECONDS, Watch
from ropewalk.jobs.runs.show.status import states

PROGRAM = "ropewalk.jobs.runs.program.shell"


def shell_command(run: RunDir, node: int, command: Sequence[str], *, terminal: bool, with_input: bool = False) -> list[str]:
    """Return the command of this machine that opens a shell on a node of a run, or runs a command there.

    Raises ConfigError if the run does not run, or has no such node.
    """
    state = states([run])[run.id].state
    if state is not RunState.RUNNING:
        raise ConfigError(f"{run.id} is {state.lower()}: a shell needs a running run; `ropewalk why {run.id}` explains its state")
    addresses = _addresses(run)
    if node not in addresses:
        nodes = ", ".join(map(str, sorted(addresses))) or "none yet"
        raise ConfigError(f"{run.id} has no node {node}; its nodes: {nodes}")
    backend = backend_of(run)
    program = NodeProgram(
        module=PROGRAM, node=node, address=addresses[node], command=command, terminal=terminal, input=with_input
    )
    return backend.shell_command(run, program)


def await_node(run: RunDir, node: int, report: Callable[[str], object]) -> None:
    """Wait until a node of a run takes shells, or the run has ended. `report` is called with each reason why it waits."""
    watch, reported = Watch(run), ""
    while not watch.over() and not _takes_shells(run, node):
        if watch.waits not in ("", reported):
            report(reported := watch.waits)
        time.sleep(POLL_SECONDS)


def _takes_shells(run: RunDir, node: int) -> bool:
    """Return True if the newest attempt has not ended, and the node has an agent."""
    attempts = run.attempts()
    return bool(attempts) and run.outcome(attempts[-1]) is None and node in _addresses(run)


def _addresses(run: RunDir) -> dict[int, str]:
    """Return the addresses of the newest attempt's nodes that have an agent."""
    lines = parse_lines(read_afresh(run.attempt_dir(run.attempts()[-1]) / AGENTS))[0]
    return {int(line["node"]): str(line["address"]) for line in lines}

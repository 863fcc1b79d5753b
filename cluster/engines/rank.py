"""One rank of a group: a process that its agent has forked from a server with preloaded modules.

Its agent gives it the context of all ranks of the node, to which each group adds the rank's place.
"""

import gc
import logging
import os
import sys
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from ropewalk.cluster.engines.entry import die_with_parent, load_entry, run_entry
from ropewalk.cluster.engines.stacks import allow_stack_dumps, stacks_file
from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_REQUEUE
from ropewalk.cluster.process.output import configure_logging, end_output, rank_prefix, redirect_output
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.group_line import Assignment, GroupLine
from ropewalk.cluster.run.heartbeat import heart_file
from ropewalk.cluster.run.project import add_project_path


def log_of(node: JobContext, rank: int) -> tuple[Path, bool]:
    """Return the log of a rank, and whether it shares it with other ranks of its node."""
    shared_log = node.shared_log if rank else ""
    return node.run.log_dir(node.attempt) / (shared_log or f"rank-{rank}.log"), bool(shared_log)


def start_rank(node: JobContext, agent_pid: int, connection: Connection, output: Connection | None, rehearsal: str) -> None:
    """Be a spare process until the agent gives it a place, then run that rank, and exit.

    `output`: the pipe through which the agent writes the log of one rank; None: each rank writes its own. `rehearsal`:
    what to do until then, which makes the process faster in its first group; see `Trains`.
    """
    gc.freeze()  # collections then leave out what the fork server imported
    die_with_parent()
    line = GroupLine(connection, may_stay=output is None)
    if rehearsal:
        with closing(load_entry(rehearsal)()) as parts:
            for _ in parts:
                if line.is_assigned:
                    break
        gc.collect()
    plain_torch_logging()
    assignment = line.next_assignment()
    if node.hung_seconds is not None and node.stop_flag is not None:
        allow_stack_dumps(agent_pid, stacks_file(node.stop_flag, int(assignment.variables["LOCAL_RANK"])))
    sys.exit(run_rank(node, assignment, line, output))


def run_rank(node: JobContext, assignment: Assignment, line: GroupLine, output: Connection | None = None) -> int:
    """Run a rank in one group after the other, for as long as this process stays. Returns 0 or 85; exits with any other code.

    Stop signals are blocked here, as in the fork server: only the agent acts on them, and kills its ranks by SIGKILL.
    """
    while True:
        context = _take(assignment, node, line, output)
        code = run_entry(context)
        saved = code == EXIT_REQUEUE and context.stays and not context.node_must_stop  # another group is to form
        if code is not None and not saved:
            break
        gc.collect()  # models and process groups, whose sockets the other ranks wait for to be closed
        line.leave(context.group, EXIT_REQUEUE if saved else EXIT_LOST_PEER)
        assignment = line.next_assignment()
    logging.shutdown()
    end_output()
    if code not in (EXIT_DONE, EXIT_REQUEUE) or (code == EXIT_REQUEUE and context.stays):
        # the interpreter's shutdown may hang in a broken process group, and ranks that go on wait for one that has saved
        os._exit(code)
    return code


def _take(assignment: Assignment, node: JobContext, line: GroupLine, output: Connection | None) -> JobContext:
    """Take a place in a group: set the environment, and open the rank's log."""
    os.environ.update(assignment.variables)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    path, is_shared = log_of(node, rank)
    redirect_output(output or path, rank_prefix(rank) if is_shared else "")
    configure_logging(f"rank {rank}")
    torch, threads = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS")
    if torch is not None and threads:
        torch.set_num_threads(int(threads))  # it was read when the fork server imported torch; set it again
    add_project_path()
    return replace(
        node,
        group=assignment.group,
        rank=rank,
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        shared_log=path.name if is_shared else "",
        heart_file=heart_file(node.stop_flag, local_rank) if node.stop_flag is not None else None,
        line=line,
        memory=node.memory and replace(node.memory, local_rank=local_rank),
    )


def plain_torch_logging() -> None:
    """Route torch's log through our handler.

    torch's formatter imports torch._dynamo (2 to 4 s) to format the first exception.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True

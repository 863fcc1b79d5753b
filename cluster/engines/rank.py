"""One rank of a group: a process that its agent has forked from a server with preloaded modules."""

import gc
import logging
import os
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from ropewalk.cluster.engines.entry import die_with_parent, run_entry
from ropewalk.cluster.engines.stacks import allow_stack_dumps, stacks_file
from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_REQUEUE, StaleAttemptError
from ropewalk.cluster.process.output import configure_logging, end_output, rank_prefix, redirect_output
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.group_line import Assignment, GroupLine
from ropewalk.cluster.run.heartbeat import heart_file
from ropewalk.cluster.run.node_memory import NodeMemory
from ropewalk.cluster.run.project import add_project_path

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankArguments:
    """Arguments of a node's ranks in all groups."""

    run: Path
    attempt: int
    stop_flag: Path
    regroup_flag: Path
    agent_pid: int
    hung_seconds: float | None
    shared_log: str = ""
    memory: NodeMemory | None = None


def log_of(arguments: RankArguments, rank: int) -> tuple[Path, bool]:
    """Return the log of a rank, and whether it shares it with other ranks of its node."""
    shared_log = arguments.shared_log if rank else ""
    return RunDir(arguments.run).log_dir(arguments.attempt) / (shared_log or f"rank-{rank}.log"), bool(shared_log)


def start_rank(arguments: RankArguments, connection: Connection, output: Connection | None = None) -> None:
    """Be a spare process until the agent gives it a place, then run that rank, and exit.

    `output`: the pipe through which the agent writes the log of one rank; None: each rank writes its own.
    """
    gc.freeze()  # collections then leave out what the fork server imported
    die_with_parent()
    line = GroupLine(connection, may_stay=output is None)
    assignment = line.next_assignment()
    if arguments.hung_seconds is not None:
        allow_stack_dumps(arguments.agent_pid, stacks_file(arguments.stop_flag, int(assignment.variables["LOCAL_RANK"])))
    sys.exit(run_rank(arguments, assignment, line, output))


def run_rank(
    arguments: RankArguments, assignment: Assignment, line: GroupLine | None = None, output: Connection | None = None
) -> int:
    """Run a rank in one group after the other, for as long as this process stays. Returns 0 or 85; exits with any other code.

    Stop signals are blocked here, as in the fork server: only the agent acts on them, and kills its ranks by SIGKILL.
    """
    while True:
        context = _take(assignment, arguments, line, output)
        code = run_entry(context)
        saved = code == EXIT_REQUEUE and context.stays and not context.node_must_stop  # another group is to form
        if line is None or not (saved or code is None):
            break
        gc.collect()  # models and process groups, whose sockets the other ranks wait for to be closed
        line.leave(context.group, EXIT_REQUEUE if saved else EXIT_LOST_PEER)
        assignment = line.next_assignment()
    logging.shutdown()
    end_output()
    if code not in (EXIT_DONE, EXIT_REQUEUE) or (code == EXIT_REQUEUE and context.stays):
        # the interpreter's shutdown may hang in a broken process group, and ranks that go on wait for one that has saved
        os._exit(code or EXIT_LOST_PEER)
    return code


def _take(assignment: Assignment, arguments: RankArguments, line: GroupLine | None, output: Connection | None) -> JobContext:
    """Take a place in a group: set the environment, open the rank's log, and claim the fence on rank 0."""
    os.environ.update(assignment.variables)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    run = RunDir(arguments.run)
    path, is_shared = log_of(arguments, rank)
    redirect_output(output or path, rank_prefix(rank) if is_shared else "")
    configure_logging(f"rank {rank}")
    plain_torch_logging()
    torch, threads = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS")
    if torch is not None and threads:
        torch.set_num_threads(int(threads))  # it was read when the fork server imported torch; set it again
    context = JobContext(
        run=run,
        attempt=arguments.attempt,
        group=assignment.group,
        rank=rank,
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        shared_log=path.name if is_shared else "",
        stop_flag=arguments.stop_flag,
        regroup_flag=arguments.regroup_flag,
        heart_file=heart_file(arguments.stop_flag, local_rank),
        hung_seconds=arguments.hung_seconds,
        line=line,
        memory=arguments.memory and replace(arguments.memory, local_rank=local_rank),
    )
    try:
        if rank == 0:
            context.fence.claim()
    except StaleAttemptError as error:
        log.warning("%s", error)
        os._exit(EXIT_LOST_PEER)
    add_project_path()
    return context


def plain_torch_logging() -> None:
    """Route torch's log through our handler.

    torch's formatter imports torch._dynamo (2 to 4 s) to format the first exception.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True

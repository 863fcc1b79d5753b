"""One rank of a group: a process that its agent has forked from a server with preloaded modules."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ropewalk.cluster.engines.entry import die_with_parent, run_entry
from ropewalk.cluster.engines.stacks import allow_stack_dumps, stacks_file
from ropewalk.cluster.errors import EXIT_DONE, EXIT_LOST_PEER, EXIT_REQUEUE, StaleAttemptError
from ropewalk.cluster.process.output import configure_logging, end_output, rank_prefix, redirect_output
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.heartbeat import heart_file
from ropewalk.cluster.run.project import add_project_path

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankArguments:
    """Arguments of a node's ranks in one group."""

    run: Path
    attempt: int
    stop_flag: Path
    regroup_flag: Path
    agent_pid: int
    hung_seconds: float | None
    shared_log: str = ""
    group: int = 0


def log_of(arguments: RankArguments, rank: int) -> tuple[Path, bool]:
    """Return the log of a rank, and whether it shares it with other ranks of its node."""
    shared_log = arguments.shared_log if rank else ""
    return RunDir(arguments.run).log_dir(arguments.attempt) / (shared_log or f"rank-{rank}.log"), bool(shared_log)


def start_rank(arguments: RankArguments, variables: Mapping[str, str], output: Connection | None = None) -> None:
    """Run one rank with these environment variables, which tell it its place in the group, and exit.

    `output`: the pipe through which the agent writes the rank's log; None: the rank writes it.
    """
    os.environ.update(variables)
    sys.exit(run_rank(arguments, output))


def run_rank(arguments: RankArguments, output: Connection | None = None) -> int:
    """Run one rank: open its log, claim the fence, call the entry. Returns 0 or 85; exits with any other code.

    Stop signals are blocked here, as in the fork server: only the agent acts on them, and kills its ranks by SIGKILL.
    """
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    run = RunDir(arguments.run)
    path, is_shared = log_of(arguments, rank)
    redirect_output(output or path, rank_prefix(rank) if is_shared else "")
    configure_logging(f"rank {rank}")
    plain_torch_logging()
    die_with_parent()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # it was read when the fork server imported torch; set it again
    context = JobContext(
        run=run,
        attempt=arguments.attempt,
        group=arguments.group,
        rank=rank,
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        shared_log=path.name if is_shared else "",
        stop_flag=arguments.stop_flag,
        regroup_flag=arguments.regroup_flag,
        heart_file=heart_file(arguments.stop_flag, local_rank),
        hung_seconds=arguments.hung_seconds,
    )
    if arguments.hung_seconds is not None:
        allow_stack_dumps(arguments.agent_pid, stacks_file(arguments.stop_flag, local_rank))
    try:
        if rank == 0:
            context.fence.claim()
    except StaleAttemptError as error:
        log.warning("%s", error)
        os._exit(EXIT_LOST_PEER)
    add_project_path()
    code = run_entry(context)
    logging.shutdown()
    end_output()
    if code not in (EXIT_DONE, EXIT_REQUEUE):
        os._exit(code)  # the interpreter's shutdown may hang in a broken process group
    return code


def plain_torch_logging() -> None:
    """Route torch's log through our handler.

    torch's formatter imports torch._dynamo (2 to 4 s) to format the first exception.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True

"""What a program finds in its environment: torchrun's variables, and the run's."""

import os
from collections.abc import Mapping

from ropewalk.cluster.run.context import GROUP_VARIABLE, STOP_VARIABLE, JobContext
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS

RUN_VARIABLE = "ROPEWALK_RUN"  # the run's directory
ATTEMPT_VARIABLE = "ROPEWALK_ATTEMPT"
CHECKPOINTS_VARIABLE = "ROPEWALK_CHECKPOINTS"  # a directory that outlives the attempt
REGROUP_VARIABLE = "ROPEWALK_REGROUP_FLAG"  # a file that exists as soon as the group must form anew
SIGNAL_VARIABLE = "ROPEWALK_STOP_SIGNAL"  # the signal by which the program is asked to leave, such as SIGTERM
NODES_VARIABLE = "ROPEWALK_NODES"  # of launch=nodes: the addresses of all nodes, by commas, the first node first


def variables_of(context: JobContext, launch: str, stop_signal: str | None = None) -> Mapping[str, str]:
    """The run's variables for the program of one process; `launch` and `stop_signal` are the keys of the command job."""
    found = {
        RUN_VARIABLE: str(context.run.path.absolute()),
        ATTEMPT_VARIABLE: str(context.attempt),
        GROUP_VARIABLE: str(context.group),
        CHECKPOINTS_VARIABLE: str(context.run.checkpoints.absolute()),
        "PYTHONUNBUFFERED": os.environ.get("PYTHONUNBUFFERED", "1"),  # what it says before it is killed is in its log
    }
    if stop_signal is not None:
        found[SIGNAL_VARIABLE] = f"SIG{stop_signal}"
    if context.stop_flag is not None:
        found[STOP_VARIABLE] = str(context.stop_flag)
    if context.regroup_flag is not None:
        found[REGROUP_VARIABLE] = str(context.regroup_flag)
    if launch == "ranks" and "LOCAL_WORLD_SIZE" not in os.environ:
        found["LOCAL_WORLD_SIZE"] = str(context.run.resources(context.attempt).local_world_size)
    if launch == "nodes":
        found |= {NODES_VARIABLE: ",".join(_addresses(context)), "ROPEWALK_NODE_RANK": str(context.rank)}
    return found


def project_folder(run: RunDir, directory: str) -> str:
    """Where the user's own code lies for this run: in the copy that travelled with it, else the directory itself."""
    shipped = run.record.get("project")
    if not shipped:
        return directory
    return str(run.path.absolute().parent / CODE_FOLDER / shipped["snapshot"] / shipped["folder"])


def _addresses(context: JobContext) -> list[str]:
    """The addresses of the attempt's nodes in the order of their ranks, which the rendezvous deals by address."""
    lines = read_lines(context.run.attempt_dir(context.attempt) / AGENTS)
    return sorted({int(line["node"]): str(line["address"]) for line in lines}.values())

"""Environment variables of a user's program: those of torchrun, and those of the run."""

import os
from collections.abc import Mapping

from ropewalk.cluster.run.context import GROUP_VARIABLE, STOP_VARIABLE, JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS

RUN_VARIABLE = "ROPEWALK_RUN"  # the run directory
ATTEMPT_VARIABLE = "ROPEWALK_ATTEMPT"
CHECKPOINTS_VARIABLE = "ROPEWALK_CHECKPOINTS"  # a directory that outlives the attempt
REGROUP_VARIABLE = "ROPEWALK_REGROUP_FLAG"  # a file that exists as soon as a new group must form
SIGNAL_VARIABLE = "ROPEWALK_STOP_SIGNAL"  # the signal that requests the program to stop, such as SIGTERM
NODES_VARIABLE = "ROPEWALK_NODES"  # with launch=nodes: comma-separated addresses of all nodes, the first node first


def variables_of(context: JobContext, launch: str, stop_signal: str | None = None) -> Mapping[str, str]:
    """Return the run's variables for the program of one process. `launch`, `stop_signal`: keys of the command job."""
    variables = {
        RUN_VARIABLE: str(context.run.path.absolute()),
        ATTEMPT_VARIABLE: str(context.attempt),
        GROUP_VARIABLE: str(context.group),
        CHECKPOINTS_VARIABLE: str(context.run.checkpoints.absolute()),
        "PYTHONUNBUFFERED": os.environ.get("PYTHONUNBUFFERED", "1"),  # so that its last output before a kill is in the log
    }
    if stop_signal is not None:
        variables[SIGNAL_VARIABLE] = f"SIG{stop_signal}"
    if context.stop_flag is not None:
        variables[STOP_VARIABLE] = str(context.stop_flag)
    if context.regroup_flag is not None:
        variables[REGROUP_VARIABLE] = str(context.regroup_flag)
    if launch == "ranks" and "LOCAL_WORLD_SIZE" not in os.environ:
        variables["LOCAL_WORLD_SIZE"] = str(context.run.resources(context.attempt).local_world_size)
    if launch == "nodes":
        variables |= {NODES_VARIABLE: ",".join(_addresses(context)), "ROPEWALK_NODE_RANK": str(context.rank)}
    return variables


def project_folder(run: RunDir, directory: str) -> str:
    """Return the folder of the user's code for a run: its copy if there is one, else the directory itself."""
    return str(run.project) if run.record.get("project") else directory


def _addresses(context: JobContext) -> list[str]:
    """Return the addresses of the attempt's nodes in the order of their ranks."""
    lines = read_lines(context.run.attempt_dir(context.attempt) / AGENTS)
    addresses = {int(line["node"]): str(line["address"]) for line in lines}
    return [addresses[node] for node in sorted(addresses)]

"""Modules of the user's that a job file names: scorers, rewards, functions."""

import os
import sys

PROJECT_VARIABLE = "ROPEWALK_PROJECT"  # `RunDir.project`, set by the agent for all processes of its node


def add_project_path() -> None:
    """Let this process import modules of the user's project, after everything that is installed.

    The folder stands at the end of `sys.path`, so that no module of it can shadow one of ours or of a library, unless the user
    put it in PYTHONPATH.
    """
    project = os.environ.get(PROJECT_VARIABLE) or os.getcwd()
    if project not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        sys.path[:] = [*(path for path in sys.path if path not in ("", project)), project]

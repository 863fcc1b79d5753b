"""Where modules of the user's own are imported from: scorers, rewards, functions that a job file names."""

import os
import sys

PROJECT_VARIABLE = "ROPEWALK_PROJECT"  # the user's folder, or the copy of it that travelled with the run


def add_project_path() -> None:
    """Let this process import modules of the user's project, after everything that is installed.

    The folder stands at the end of `sys.path`, so that no module of it can shadow one of ours or of a library, unless the user
    put it in PYTHONPATH.
    """
    project = os.environ.get(PROJECT_VARIABLE) or os.getcwd()
    if project not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        sys.path[:] = [*(path for path in sys.path if path not in ("", project)), project]

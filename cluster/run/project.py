"""Import path of the user's modules that job files name, such as scorers, rewards and functions."""

import os
import sys

PROJECT_VARIABLE = "ROPEWALK_PROJECT"  # `RunDir.project`, set by the agent for all processes on its node


def add_project_path() -> None:
    """Add the user's project to the end of `sys.path`.

    There none of its modules can shadow a module of this program or of a library, unless the user put it in PYTHONPATH.
    """
    project = os.environ.get(PROJECT_VARIABLE) or os.getcwd()
    if project not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        sys.path[:] = [*(path for path in sys.path if path not in ("", project)), project]

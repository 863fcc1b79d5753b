"""Import path of the user's modules that job files name, such as scorers, rewards and functions."""

import os
import sys
from importlib import import_module
from typing import Any

from ropewalk.cluster.errors import ConfigError

PROJECT_VARIABLE = "ROPEWALK_PROJECT"  # `RunDir.project`, set by the agent for all processes on its node


def add_project_path() -> None:
    """Add the user's project to the end of `sys.path`, where its modules shadow no others, unless it is in PYTHONPATH."""
    project = os.environ.get(PROJECT_VARIABLE) or os.getcwd()
    if project not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        sys.path[:] = [*(path for path in sys.path if path not in ("", project)), project]


def user_function(key: str, name: str) -> Any:
    """Import the function MODULE:FUNCTION that `key` of a job file names. Raises ConfigError."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        remedy = "check the name; its module must be in the project's folder, or in PYTHONPATH"
        raise ConfigError(f"{key}: {name} cannot be imported: {error}; {remedy}") from None

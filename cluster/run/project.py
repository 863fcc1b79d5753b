"""Import of the user's modules that job files name: jobs, filters, objectives, scorers, rewards and functions."""

import difflib
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError

PROJECT_VARIABLE = "ROPEWALK_PROJECT"  # `RunDir.project`, set by the agent for all processes on its node


def project_directory() -> str:
    """Return the folder of the user's modules: in a run its copy or the directory of the submission, else the current one."""
    return os.environ.get(PROJECT_VARIABLE) or os.getcwd()


def add_project_path() -> None:
    """Add the user's project to the end of `sys.path`, where its modules shadow no others, unless it is in PYTHONPATH."""
    project = project_directory()
    if project not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        sys.path[:] = [*(path for path in sys.path if path not in ("", project)), project]


def user_object(key: str, name: str) -> Any:
    """Import MODULE:NAME, which `key` of a job file names, from the user's project. Raises ConfigError."""
    module_name, _, attribute = name.partition(":")
    project = project_directory()
    if not attribute or "/" in module_name or module_name.endswith(".py"):
        raise ConfigError(f"{key}: {name!r} must be MODULE:NAME, such as mine:{attribute or 'NAME'} for mine.py in {project}")
    if not {"", project} & {*sys.path}:
        sys.path.append(project)
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
        raise ConfigError(f"{key}: {name} cannot be imported: {_import_problem(error, module_name)}") from error
    if hasattr(module, attribute):
        return getattr(module, attribute)
    file, same_name = getattr(module, "__file__", None) or module_name, Path(project, f"{module_name.partition('.')[0]}.py")
    if same_name.exists() and not same_name.samefile(file):
        raise ConfigError(f"{key}: {name}: Python imports {file} under this name; give {same_name} another one")
    near = difflib.get_close_matches(attribute, vars(module), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "correct the name"
    raise ConfigError(f"{key}: {name}: {file} defines no {attribute!r}; {hint}")


def wrong_kind(key: str, name: str, value: object, wanted: str) -> ConfigError:
    """Return the error for a MODULE:NAME that is something else than `key` needs."""
    module = sys.modules.get(name.partition(":")[0])
    kind = "a class" if isinstance(value, type) else f"of type {type(value).__name__}"
    return ConfigError(f"{key}: {name} in {getattr(module, '__file__', module)} is {kind}; it must be {wanted}")


def _import_problem(error: BaseException, module: str) -> str:
    """Return the reason why a module cannot be imported, with file and line, and the remedy."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return (
            f"there is no module {error.name!r} in {project_directory()} or in PYTHONPATH;"
            " start ropewalk in the folder that contains it, or correct the name"
        )
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(f"{project_directory()}{os.sep}")]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}: " if frames else ""
    remedy = "install it, or correct the file" if isinstance(error, ModuleNotFoundError) else "correct the file"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}; {remedy}"
    return f"{where}{type(error).__name__}: {error}; {remedy}"

"""Command lines that run modules of this program."""

import sys


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Return the command line that runs a module of this program.

    With `-P` the current directory is not searched, so files of the user cannot shadow modules of this program. PYTHONSAFEPATH
    would have the same effect, but users' programs would inherit it.
    """
    return [python, "-P", "-m", module, *arguments]

"""Command lines of the program's own modules."""

import sys


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """Return the command line that runs a module of this program.

    With `-P`, which puts no folder before the installed packages: whatever a user's directory holds, it shadows no module of
    ours. PYTHONSAFEPATH would do so too, but users' programs would inherit it.
    """
    return [python, "-P", "-m", module, *arguments]

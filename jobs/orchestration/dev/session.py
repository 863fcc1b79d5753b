"""Start of an ssh session on a node of a dev run: a command, or the user's shell, with the run's variables.

sshd runs it for each session, without variables and so without packages: session.py HOLDER FOLDER
"""

import os
import shutil
import sys
from pathlib import Path

OWN = ("SSH_", "LC_", "LANG", "TERM", "ROPEWALK_CONNECTION")  # variables of the session itself


def main() -> None:
    """Run what the client asks for."""
    holder, folder = sys.argv[1:3]
    pairs = (os.fsdecode(word).partition("=") for word in Path(f"/proc/{holder}/environ").read_bytes().split(b"\0") if word)
    variables = {name: value for name, _, value in pairs}
    variables |= {name: value for name, value in os.environ.items() if name.startswith(OWN)}
    variables["ROPEWALK_SESSION"] = str(os.getsid(0))
    command = variables.pop("SSH_ORIGINAL_COMMAND", None)
    shell = next(filter(None, map(shutil.which, (os.environ.get("SHELL", ""), "bash", "sh"))), "/bin/sh")
    variables["SHELL"] = shell
    os.chdir(folder)
    os.execve(shell, [shell, *([] if command is None else ["-c", command])], variables)  # noqa: S606 - the user's own


if __name__ == "__main__":
    main()

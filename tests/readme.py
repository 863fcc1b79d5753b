"""Sections of READMEs as a reader follows them: files are written, and commands typed, as they stand there."""

import os
import re
import shlex
import sys
from pathlib import Path

from tests.forked import run_forked

ROOT = Path(__file__).resolve().parents[1]


class Section:
    """A section of a README with its code."""

    def __init__(self, page: str, title: str) -> None:
        text = (ROOT / page).read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        self.code: dict[str, str] = dict(re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))
        assert self.code, f"{page}: {title}"

    def write_files(self, folder: Path) -> None:
        """Write each block that begins with the comment of a file's name."""
        for block in self.code.values():
            if name := re.match(r"# ([\w.-]+)\n", block):
                (folder / name[1]).write_text(block)

    def commands(self) -> list[list[str]]:
        """The arguments of `ropewalk` in each line of its shell block."""
        lines = [shlex.split(line) for line in self.code["sh"].splitlines()]
        assert {line[0] for line in lines} == {"ropewalk"}
        return [line[1:] for line in lines]


def ropewalk(folder: Path, *arguments: str, expect: int = 0, runs: Path | None = None, path: str = "") -> tuple[str, str]:
    """Run the command in a folder, which is not on Python's path, as with the installed script; return stdout and stderr."""
    environment = {**os.environ, "ROPEWALK_RUNS": str(runs or folder / "runs"), "WANDB_MODE": "disabled", "COLUMNS": "200"}
    environment |= {"PYTHONPATH": path}
    command = [sys.executable, "-P", "-m", "ropewalk.jobs.cli", *arguments]
    done = run_forked(command, env=environment, cwd=folder)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr

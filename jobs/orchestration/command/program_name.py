"""The name of a program by its command: what its run is called where the user gives no name."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

DEFAULT = "command"
# programs that start another one: what is behind their options is it
_STARTERS = re.compile(
    r"(python|pypy)[\d.]*|torchrun|accelerate|deepspeed|horovodrun|mpirun|mpiexec|srun|env|nice|time|timeout|nohup|exec|uv|poetry"
    r"|conda|pipenv|launch|run|node|julia|Rscript|perl|ruby"
)
_SHELLS = frozenset({"bash", "sh", "zsh", "dash"})
_SCRIPT = re.compile(r".+\.(py|sh|jl|R|pl|rb|js|lua)")


def program_name(command: Sequence[str]) -> str:
    """`train` of `python train.py --lr 1`, of `torchrun -m mylab.train`, of a line of bash that does so; else its first word."""
    words = list(command)
    if words and Path(words[0]).name in _SHELLS:
        words = _of_shell(words[1:])
    for place, word in enumerate(words):
        if word == "-m" and place + 1 < len(words):
            return words[place + 1].rpartition(".")[2]
        if _SCRIPT.fullmatch(word) and not word.startswith("-"):
            return Path(word).stem
    for word in words:
        name = Path(word).name
        if not word.startswith("-") and "=" not in word and not _STARTERS.fullmatch(name):
            return name if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) else DEFAULT
    return DEFAULT


def _of_shell(words: Sequence[str]) -> list[str]:
    """The words behind a shell: of a script's name, or of the last command of a line."""
    if "-c" not in words or words[-1] == "-c":
        return list(words)
    line = words[words.index("-c") + 1]
    try:
        found = shlex.split(re.split(r"&&|;|\n", line.strip().rstrip(";"))[-1], comments=True)
    except ValueError:  # half a quotation
        return []
    return found

"""What a command of Python runs, and what of the large libraries that imports."""

import os
import re
from collections.abc import Sequence

# what takes a second or more to import, and is there wherever this program is
LIBRARIES = ("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "transformers")
ONCE_USED = "torch._dynamo"  # what optimizers and DistributedDataParallel of torch import as they are made: two seconds
_INTERPRETER = re.compile(r"python[\d.]*")
_IMPORT = re.compile(r"^(?:from|import) +([\w.]+)", re.MULTILINE)


def script_of(words: Sequence[str]) -> tuple[str, tuple[str, ...], bool] | None:
    """The script or module of a command, its arguments, and whether it is a module; None: not Python, or with other options."""
    if not _INTERPRETER.fullmatch(os.path.basename(words[0])):
        return None
    rest = [*words[1:]]
    if rest[:1] == ["-u"]:
        rest = rest[1:]
    if len(rest) > 1 and rest[0] == "-m":
        return rest[1], tuple(rest[2:]), True
    return (rest[0], tuple(rest[1:]), False) if rest and not rest[0].startswith("-") else None


def imports_of(text: str) -> list[str]:
    """Those of LIBRARIES that the text of a script imports at its top, and what torch imports later."""
    names = [f"{name}." for name in _IMPORT.findall(text)]
    found = [library for library in LIBRARIES if any(name.startswith(f"{library}.") for name in names)]
    return [*found, *([ONCE_USED] if any(name.startswith("torch.") for name in names) else [])]

"""What a command of Python runs, and what of the large libraries that imports."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

# what takes a second or more to import, and is there wherever this program is
LIBRARIES = ("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "transformers")
ONCE_USED = "torch._dynamo"  # what optimizers and DistributedDataParallel of torch import as they are made: two seconds
# variables that interpreters and libraries read as they load, or are loaded
READ_AS_THEY_LOAD = re.compile(
    r"(PYTHON(?!UNBUFFERED$)|LD_|LC_|LANG$|TZ$|HOME$|XDG_|MALLOC_|OMP_|MKL_|KMP_|OPENBLAS_|GOMP_|GOTO_|NUMEXPR_|DNNL_|ONEDNN_|NPY_"
    r"|NUMPY_|ATEN_|TORCH(?!ELASTIC)|PYTORCH_|TRITON_|KINETO_|TQDM_|USE_|HF_|HUGGINGFACE_|HUGGING_FACE_|TRANSFORMERS_|ACCELERATE_)"
)
_INTERPRETER = re.compile(r"python[\d.]*")
_IMPORT = re.compile(r"^(?:from|import) +([\w.]+)", re.MULTILINE)
_NAME = r"""\s*(?:["'](\w+)["'])?"""
_WRITES = re.compile(
    rf"(?:\bdel\s[\w.]*environ\[{_NAME}|\benviron\[{_NAME}[^\]\n]*\]\s*\+?=(?!=)|\benviron\.(?:setdefault|pop|__setitem__)\({_NAME}"
    rf"|\b(?:putenv|unsetenv)\({_NAME}|\benviron\.(?:update|clear)\(|\benviron\s*\|=|\bload_dotenv\()"
)


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


def sets_variables(text: str) -> bool:
    """Whether a script sets a variable that a library reads as it is loaded, or one whose name the text does not tell."""
    names = (next(filter(None, found.groups()), None) for found in _WRITES.finditer(text))
    return any(name is None or READ_AS_THEY_LOAD.match(name) is not None for name in names)


def sources(script: Path, place: Path) -> list[str]:
    """The text of a script, and of the modules beside it that it imports at its top."""
    text = script.read_text(errors="replace")
    names = [name for name in _IMPORT.findall(text) if name.strip(".")]
    inner = [(script.parent if name[0] == "." else place).joinpath(*name.strip(".").split(".")) for name in names]
    files = [file for path in inner for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return [text, *(file.read_text(errors="replace") for file in files)]

"""What a run records of where it came from: the versions of packages, and no secret."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.installed import installed_versions

VERSIONS = ("ropewalk", "torch", "ray", "transformers", "tokenizers", "pyarrow", "numpy", "numba", "pydantic", "fsspec", "wandb")

_SECRET = re.compile(
    r"(api_?key|access_?key|secret_?key|private_?key|auth_?key|^key|secret|passw(or)?d|passphrase|credentials?|token)$",
    re.IGNORECASE,
)
_TOKENS_OF_TEXT = re.compile(
    r"(bos|eos|pad|unk|mask|sep|cls|end|start|stop|document|special|next|per|unknown|boi|eoi|image|audio|video)_token$",
    re.IGNORECASE,
)
_KEYS = ("hf_", "sk-", "ghp_", "glpat-", "xox")  # with which keys of well-known services begin
_SECRET_IN_URL = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


@cache
def versions() -> Mapping[str, str | None]:
    """The versions of Python and of the packages that decide results; None for one that is not installed."""
    return {"python": platform.python_version(), **installed_versions(VERSIONS)}


def masked(value: Any, key: str = "") -> Any:
    """Replace every string under a key that names a secret by `***`, and the password in every URL."""
    if isinstance(value, Mapping):
        return {k: masked(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(v, key) for v in value]
    if not isinstance(value, str):
        return value
    if _SECRET.search(key) and not _TOKENS_OF_TEXT.search(key):
        return "***"
    return _SECRET_IN_URL.sub("***", value)


def refuse_secrets(values: Mapping[str, Any], remedy: str) -> None:
    """Raise ConfigError where run.yaml would hold `***` for what the run itself must read, or a secret in words of a command."""
    for key, value in values.items():
        if masked(value, key) != value or (isinstance(value, list) and _secret_in_words(value)):
            raise ConfigError(f"{key}: holds what looks like a secret, and run.yaml is a plain file; {remedy}")


def _secret_in_words(words: Sequence[Any]) -> bool:
    """Whether a command's words, or the words of its lines of bash, hold a secret such as `--api-key VALUE` or `A_TOKEN=VALUE`.

    A flag such as --use-auth-token is a switch, and takes no value.
    """
    named = ""  # the kind of flag that the word before was
    for word in words:
        parts = word.split() if isinstance(word, str) else []
        for part in parts:
            name, separator, value = part.partition("=")
            flag = re.fullmatch(r"--?[\w.-]+", name)
            if named and not flag and _is_value(part) and (named != "switch" or part.startswith(_KEYS)):
                return True
            # in a line of bash, which may hold a program, only what is certainly no expression
            names = (flag or len(parts) == 1 or re.fullmatch(r"[A-Z][A-Z0-9_]*", name)) and _names_secret(name)
            if names and separator and _is_value(value):
                return True
            named = ("switch" if re.match(r"--?(use|no)[_-]", name) else "flag") if flag and names and not separator else ""
    return False


def _names_secret(name: str) -> bool:
    plain = f"_{re.sub(r'[^a-zA-Z0-9]', '_', name)}"
    return bool(_SECRET.search(plain)) and not _TOKENS_OF_TEXT.search(plain)


def _is_value(text: str) -> bool:
    """Whether a word can be a secret itself: no variable, special token such as <image> or [UNK], number, or path of a file."""
    bare = text.strip("'\"")
    is_path = re.match(r"~/|\.{1,2}/", bare) or (re.match(r"/[\w.-]+/", bare) and _has_root(bare))
    return not is_path and not re.match(r"($|[${<]|(\[\w+\]|true|false|none|null|\d+)$)", bare, re.IGNORECASE)


def _has_root(path: str) -> bool:
    """Whether a path ends as files do, or begins as those of this machine: a key in base64 may begin with a slash."""
    return bool(re.search(r"\.[a-z]\w{1,7}$", path, re.IGNORECASE)) or os.path.exists(f"/{path.split('/')[1]}")


def masked_word(word: str) -> str:
    """Mask the secret in a word of a command, such as `key=value`."""
    key, separator, text = word.partition("=")
    return f"{key}={masked(text, key.rpartition('.')[2])}" if separator else str(masked(word))

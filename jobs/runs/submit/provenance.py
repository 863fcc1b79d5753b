"""Provenance in run.yaml: versions of packages, and a command and configuration without secrets."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.installed import installed_versions
from ropewalk.cluster.secrets.plain_text import mask_secret_text

VERSIONS = ("ropewalk", "torch", "ray", "transformers", "tokenizers", "pyarrow", "numpy", "numba", "pydantic", "fsspec", "wandb")

_SECRET = re.compile(
    r"(api_?key|access_?key|secret_?key|private_?key|auth_?key|^key|secret|passw(or)?d|passphrase|credentials?|token)$",
    re.IGNORECASE,
)
_TOKENS_OF_TEXT = re.compile(
    r"(bos|eos|pad|unk|mask|sep|cls|end|start|stop|document|special|next|per|unknown|boi|eoi|image|audio|video)_token$",
    re.IGNORECASE,
)
REMEDY = "store it with `ropewalk secret set NAME`, and name it in the key secrets"
_KEYS = ("hf_", "sk-", "ghp_", "glpat-", "xox")  # prefixes of API keys of well-known services


@cache
def versions() -> Mapping[str, str | None]:
    """Return the versions of Python and of the packages that affect results; None if a package is not installed."""
    return {"python": platform.python_version(), **installed_versions(VERSIONS)}


def mask_secrets(value: Any, key: str = "") -> Any:
    """Replace every string under a key that names a secret by `***`, and everything in texts that looks like one."""
    if isinstance(value, Mapping):
        return {k: mask_secrets(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [mask_secrets(v, key) for v in value]
    if not isinstance(value, str):
        return value
    if _SECRET.search(key) and not _TOKENS_OF_TEXT.search(key):
        return "***"
    return mask_secret_text(value)


def refuse_secrets(values: Mapping[str, Any], remedy: str) -> None:
    """Raise ConfigError if a value that the run needs looks like a secret, or is a command with a secret in its arguments."""
    for key, value in values.items():
        if mask_secrets(value, key) != value or (isinstance(value, list) and _has_secret(value)):
            raise ConfigError(f"{key}: contains what looks like a secret, and run.yaml is a plain file; {remedy}")


def _has_secret(arguments: Sequence[Any]) -> bool:
    """Return True if a command or its lines of bash contain a secret such as `--api-key VALUE` or `A_TOKEN=VALUE`.

    A flag such as --use-auth-token is a switch without a value.
    """
    named = ""  # kind of the preceding flag: "flag", "switch" or none
    for argument in arguments:
        parts = argument.split() if isinstance(argument, str) else []
        for part in parts:
            name, separator, value = part.partition("=")
            flag = re.fullmatch(r"--?[\w.-]+", name)
            if named and not flag and _is_value(part) and (named != "switch" or part.startswith(_KEYS)):
                return True
            # a line of bash may contain program code, so match only upper-case variables there
            names = (flag or len(parts) == 1 or re.fullmatch(r"[A-Z][A-Z0-9_]*", name)) and _names_secret(name)
            if names and separator and _is_value(value):
                return True
            named = ("switch" if re.match(r"--?(use|no)[_-]", name) else "flag") if flag and names and not separator else ""
    return False


def _names_secret(name: str) -> bool:
    plain = f"_{re.sub(r'[^a-zA-Z0-9]', '_', name)}"
    return bool(_SECRET.search(plain)) and not _TOKENS_OF_TEXT.search(plain)


def _is_value(text: str) -> bool:
    """Return True if a word may be a secret: not a variable, a special token such as <image> or [UNK], a number or a path."""
    bare = text.strip("'\"")
    is_path = re.match(r"~/|\.{1,2}/", bare) or (re.match(r"/[\w.-]+/", bare) and _has_root(bare))
    return not is_path and not re.match(r"($|[${<]|(\[\w+\]|true|false|none|null|\d+)$)", bare, re.IGNORECASE)


def _has_root(path: str) -> bool:
    """Return True if a path has a file extension or an existing root folder; a base64 key may start with a slash too."""
    return bool(re.search(r"\.[a-z]\w{1,7}$", path, re.IGNORECASE)) or os.path.exists(f"/{path.split('/')[1]}")


def mask_argument(word: str) -> str:
    """Mask a secret in a command-line argument, such as the value of `key=value`."""
    key, separator, text = word.partition("=")
    return f"{key}={mask_secrets(text, key.rpartition('.')[2])}" if separator else str(mask_secrets(word))

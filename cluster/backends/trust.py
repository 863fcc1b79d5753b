"""Trust in a profile file of the current directory: one that would start programs is accepted once for each content.

A checkout from elsewhere may hold a `clusters.yaml`. Without this check `ropewalk ps` in it would run the checkout's programs.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from ropewalk.cluster.errors import ConfigError

# keys of the built-in backends that start programs, or change what programs do, on this machine or in a submitted job
PROGRAM_KEYS = ("host", "ssh", "kubeconfig", "setup", "python", "container", "environment", "sbatch", "image", "pod")
BUILT_IN = frozenset({"local", "slurm", "k8s"})
HARMLESS_KEYS = frozenset({"backend", "runs"})  # of other backends, whose keys are unknown here, all others count
LONGEST_VALUE = 60
_lock = Lock()
_refused: set[str] = set()


def _refuse(_question: str) -> bool:
    return False


confirm: Callable[[str], bool] = _refuse  # the command line sets it to a question at the terminal


def trusted_file() -> Path:
    """Return the list of trusted contents: one digest and path a line."""
    return Path.home() / ".config/ropewalk/trusted"


def require_trust(path: Path, profiles: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the file starts no program, or its content was trusted before or is now."""
    programs = list(programs_of(path, profiles))
    if not programs:
        return
    sentence = f"{path} would start programs: {'; '.join(programs)}"
    with _lock:  # several clusters of one file may be loaded at a time
        digest = digest_of(path, profiles)
        if digest in _trusted():
            return
        if digest not in _refused and confirm(f"{sentence}. Trust this content?"):
            return _record(path, digest)
        _refused.add(digest)
    raise ConfigError(f"{sentence}; if you trust it, run: ropewalk trust {path}")


def trust(path: Path, profiles: Mapping[str, Any]) -> list[str]:
    """Record the file's content as trusted, and return the programs that it may start from now on."""
    programs = list(programs_of(path, profiles))
    if programs and (digest := digest_of(path, profiles)) not in _trusted():
        _record(path, digest)
    return programs


def programs_of(path: Path, profiles: Mapping[str, Any]) -> Iterator[str]:
    """Describe each key that starts a program, with its cluster. Control characters are escaped."""
    for name, keys in profiles.items():
        options = keys or {}
        built_in = str(options.get("backend", name)) in BUILT_IN
        for key in PROGRAM_KEYS if built_in else sorted(set(options) - HARMLESS_KEYS):
            if options.get(key):
                commands = _commands(path, options) if key == "kubeconfig" else []
                runs = "".join(f" (runs {_quoted(command)})" for command in commands)
                yield f"{_quoted(name)}: {_quoted(key)} {_quoted(options[key])}{runs}"


def digest_of(path: Path, profiles: Mapping[str, Any]) -> str:
    """Return the hash of the file's place and content, of its kubeconfigs' servers and users, and of programs beside them.

    Contexts and tokens of a kubeconfig are left out, because kubectl and logins rewrite them.
    """
    digest = hashlib.sha256(f"{path.resolve()}\n{json.dumps(profiles, default=str)}".encode())
    for keys in profiles.values():
        for file, content in _kubeconfigs(path, keys or {}):
            users = [{**user, "user": _without_token(user.get("user"))} for user in _entries(content, "users")]
            digest.update(json.dumps([users, _entries(content, "clusters")], default=str).encode())
            for command in _commands_of(content):
                program = file.parent / command
                if "/" in command and not command.startswith("/") and program.is_file():
                    digest.update(program.read_bytes())
    return digest.hexdigest()


def _commands(path: Path, keys: Mapping[str, Any]) -> list[str]:
    return [command for _, content in _kubeconfigs(path, keys) for command in _commands_of(content)]


def _kubeconfigs(path: Path, keys: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the kubeconfigs that a profile names, with their content. Raises ConfigError."""
    from ropewalk.cluster.config_reader import read_yaml  # noqa: PLC0415 - only needed for kubeconfigs

    for name in str(keys.get("kubeconfig") or "").split(os.pathsep):
        file = path.parent / Path(name).expanduser()
        if name and file.is_file():
            yield file, read_yaml(file)


def _commands_of(kubeconfig: Mapping[str, Any]) -> list[str]:
    """Return the exec plug-ins of a kubeconfig's users."""
    plugins = [(user.get("user") or {}).get("exec") or {} for user in _entries(kubeconfig, "users")]
    return [str(plugin["command"]) for plugin in plugins if plugin.get("command")]


def _entries(kubeconfig: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    return [entry for entry in kubeconfig.get(section) or [] if isinstance(entry, dict)]


def _without_token(user: Any) -> Any:
    return {key: value for key, value in user.items() if key != "token"} if isinstance(user, dict) else user


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() else json.dumps(value, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _trusted() -> set[str]:
    file = trusted_file()
    return {line.split(" ", 1)[0] for line in file.read_text().splitlines()} if file.is_file() else set()


def _record(path: Path, digest: str) -> None:
    file = trusted_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write(f"{digest} {path.resolve()}\n")

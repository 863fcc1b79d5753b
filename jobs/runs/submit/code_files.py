"""Selection of the files of a work tree that a copy of its code holds."""

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ropewalk.cluster.run.code_copy import CACHE
from ropewalk.cluster.run.directory import CODE_FOLDER

log = logging.getLogger(__name__)

FILE_LIMIT_BYTES = 16 << 20
TOTAL_LIMIT_BYTES = 256 << 20
# names of files that usually hold secrets
SECRET_FILES: tuple[str, ...] = (
    *(".env", ".env.*", "*.env", ".netrc", ".npmrc", ".pypirc", ".git-credentials", ".pgpass", "kubeconfig"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.pem", "*.key", "*.p12", "*.pfx"),
    *("*credentials", "*credentials.json", "secrets.json", "secrets.toml", "secrets.yaml", "secrets.yml"),
)


class SelectedCode(NamedTuple):
    """Files of a tree to copy, links with their targets, and what is left out, with reasons."""

    files: list[str] | None  # None: git does not list them
    links: dict[str, str]
    left_out: list[str]


def select_code(tree: Path, not_code: Sequence[Path] = (), exclude: Sequence[str] = ()) -> SelectedCode:
    """Select what a copy of a work tree holds: tracked files, and untracked files that git does not ignore."""
    has_git = _has_git(tree)
    listed = _names(tree, not_code, has_git=has_git)
    if listed is None:
        return SelectedCode(None, {}, ["git does not list the files of the checkout (try `git status` there)"])
    names = [name for name in listed if CACHE not in Path(name).parts and not any(fnmatch(name, pattern) for pattern in exclude)]
    if secret := [name for name in names if _holds_secrets(name)]:
        _warn(tree, ", ".join(secret[:3]) + (f" and {len(secret) - 3} more" if len(secret) > 3 else ""))
    files, links, left_out = _choose(tree, names)
    if not has_git:
        left_out += [f"{name} (hidden, or may hold secrets)" for name in sorted({*_walk(tree, not_code)} - {*listed})]
    return SelectedCode(files, links, [as_text(os.fsencode(pattern)) for pattern in left_out])


@cache
def _warn(tree: Path, names: str) -> None:
    """Warn of files that may hold secrets: once, though a tree may be both the code and the project of a run."""
    log.warning(
        "%s: copied with the run, and may hold secrets; add %s to .gitignore or, in a project, to code.exclude", tree, names
    )


def _names(tree: Path, not_code: Sequence[Path], *, has_git: bool) -> list[str] | None:
    """Return the tracked files and the untracked ones that git does not ignore.

    Without git: all files that are not hidden, not in hidden folders, and not known to hold secrets.
    """
    if not has_git:
        return sorted(name for name in _walk(tree, not_code) if not Path(name).name.startswith(".") and not _holds_secrets(name))
    arguments = ("ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard")
    listed = ask_git(tree, *arguments, *pathspec(tree, not_code))
    return None if listed is None else sorted({os.fsdecode(word) for word in listed.split(b"\0") if word})


def _has_git(tree: Path) -> bool:
    return ask_git(tree, "rev-parse", "--git-dir") is not None


def _walk(tree: Path, not_code: Sequence[Path]) -> Iterator[str]:
    for parent, folders, files in os.walk(tree):
        folder = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".") and (folder / name).resolve() not in not_code]
        linked = [name for name in folders if (folder / name).is_symlink()]  # os.walk counts them as folders, but does not enter
        yield from (str((folder / name).relative_to(tree)) for name in [*files, *linked])


def _holds_secrets(name: str) -> bool:
    return any(fnmatch(Path(name).name.lower(), pattern) for pattern in SECRET_FILES)


def pathspec(tree: Path, not_code: Sequence[Path]) -> list[str]:
    """Return the arguments that keep git from listing what is not code."""
    inside = [path.resolve().relative_to(tree.resolve()) for path in not_code if path.resolve().is_relative_to(tree.resolve())]
    # runs may be stored in the tree itself; copies of code are never code
    return ["--", ":/", *(f":(top,exclude,literal){path if path.parts else CODE_FOLDER}" for path in inside)]


def _choose(tree: Path, names: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Select the files to copy, the links with their targets, and the files to leave out with reasons."""
    files, links, left_out, total = list[str](), set[str](), list[str](), 0
    for name in names:
        path = tree / name
        if not links.isdisjoint(map(str, Path(name).parents)):
            continue  # deleted: its folder was replaced by a link
        if path.is_symlink():
            links.add(name)
        elif path.is_dir():
            left_out.append(f"{name.rstrip('/')} (a repository of its own)")
        elif path.is_file():  # otherwise the file was deleted
            reason = _reason_to_omit(path, TOTAL_LIMIT_BYTES - total)
            if reason:
                left_out.append(f"{name} ({reason})")
            else:
                files.append(name)
                total += path.stat().st_size
    targets, leading_out = _inner_links(tree, sorted(links), files)
    return files, targets, left_out + leading_out


def _reason_to_omit(path: Path, room_bytes: int) -> str:
    size = path.stat().st_size
    if size > FILE_LIMIT_BYTES:
        return f"{size / 2**20:.0f} MiB, the limit is {FILE_LIMIT_BYTES >> 20}"
    if size > room_bytes:
        return f"the code would exceed {TOTAL_LIMIT_BYTES >> 20} MiB"
    return "" if os.access(path, os.R_OK) else "cannot be read: Permission denied"


def _inner_links(tree: Path, names: Sequence[str], files: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return links to copied files with their final targets, so that none points to the original tree; and other links."""
    copied = {*files, *(str(parent) for name in files for parent in Path(name).parents)}
    real, targets, leading_out = os.path.realpath(tree), dict[str, str](), list[str]()
    for name in names:
        link = os.path.join(real, name)
        end = os.path.realpath(link)
        if os.path.relpath(end, real) in copied:
            targets[name] = os.path.relpath(end, os.path.dirname(link))
        else:
            leading_out.append(f"{name} (a link to {os.readlink(link)}, which is not in the code)")
    return targets, leading_out


def as_text(raw: bytes) -> str:
    """Decode output of git."""
    return raw.decode(errors="replace")


def ask_git(folder: Path, *arguments: str) -> bytes | None:
    """Return the output of git in a folder, or None if it fails."""
    # optional locks could make a concurrent commit of the user fail
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None

"""Which code a run is of: commit and uncommitted changes, and a copy of it all for a run that starts hours later."""

import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cluster
from cluster.run.code_copy import CACHE, accept_copy, digest_of, hash_of
from cluster.run.directory import CODE_FOLDER, make_private
from cluster.run.files import sync_all
from cluster.text import counted

DIFF_LIMIT_BYTES = 1 << 20
NAMES_LIMIT = 100
FILE_LIMIT_BYTES = 16 << 20
TOTAL_LIMIT_BYTES = 256 << 20


def checkout() -> tuple[Path | None, str]:
    """The checkout that this program runs from, else the repository of the current directory, else None.

    With it the folder in it from which modules are imported: its top, or where the user stands in an own repository.
    """
    home = Path(cluster.__file__).parent.parent
    if (home / ".git").exists():
        return home, ""
    lines = (_git(Path.cwd(), "rev-parse", "--show-toplevel", "--show-prefix") or b"").split(b"\n")
    return (Path(os.fsdecode(lines[0])), os.fsdecode(lines[1])) if lines[0] else (None, "")


# --- what is written down


def code_state(place: Path | None, not_code: Sequence[Path] = ()) -> dict[str, Any]:
    """Commit, branch and uncommitted changes of a checkout. What lies under `not_code`, such as runs, is not looked at."""
    state: dict[str, Any] = {"commit": None, "branch": None, "dirty": False, "uncommitted": 0, "snapshot": None, "left_out": []}
    words = ("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--no-renames")
    status = _git(place, *words, *_pathspec(place, not_code)) if place else None
    if place is None or status is None:
        return {**state, "untracked": [], "diff": ""}
    lines = _text(status).split("\0")
    head = dict(line.removeprefix("# branch.").split(" ", 1) for line in lines if line.startswith("# branch."))
    untracked = [line[2:] for line in lines if line.startswith("? ")]
    num_changed = sum(line[:2] in {"1 ", "u "} for line in lines)
    diff = _text(_git(place, "diff", "HEAD") or b"").strip() if num_changed else ""
    if len(diff) > DIFF_LIMIT_BYTES:
        diff = f"{diff[:DIFF_LIMIT_BYTES]}\n... cut at {DIFF_LIMIT_BYTES} characters"
    state |= {"commit": None if head["oid"] == "(initial)" else head["oid"], "branch": head["head"]}
    state |= {"dirty": num_changed > 0, "uncommitted": num_changed + len(untracked)}
    return {**state, "untracked": untracked[:NAMES_LIMIT], "diff": diff}


def code_notice(code: Mapping[str, Any]) -> str:
    """What a user should know of the code that travels with a run; nothing if it is a commit and nothing else."""
    snapshot, left_out, text = code["snapshot"], code["left_out"], ""
    if snapshot and code["uncommitted"]:
        commit = f"commit {code['commit'][:7]}" if code["commit"] else "no commit yet"
        files = counted(code["uncommitted"], "uncommitted file")
        text += f"code: {commit} with {files}, snapshot {snapshot[:12]}\n"
    if snapshot and left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        text += f"code: not in the snapshot: {', '.join(left_out[:3])}{more}\n"
    if left_out and not snapshot:
        text += f"code: no snapshot, the run takes what is there when it starts: {left_out[0]}\n"
    return text


# --- the copy


@dataclass
class _Tree:
    """What a snapshot holds, in memory: what is hashed is what is written, whoever edits meanwhile."""

    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)  # content, executable
    links: dict[str, str] = field(default_factory=dict)  # target, relative to the link
    left_out: list[str] = field(default_factory=list)  # each with the reason


def take_snapshot(place: Path, root: Path, not_code: Sequence[Path] = ()) -> tuple[str | None, list[str]]:
    """Copy the work tree (tracked files as they are, and untracked ones that git does not ignore) under a runs' root.

    Returns the hash of the content, which names the copy, and what was left out and why. Equal code is copied once.
    """
    words = ("ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard")
    listed = _git(place, *words, *_pathspec(place, not_code))
    if listed is None:
        return None, ["git does not list the files of the checkout (try `git status` there)"]
    names = {os.fsdecode(word) for word in listed.split(b"\0") if word}
    tree = _read(place, sorted(name for name in names if CACHE not in Path(name).parts))
    digest = _digest(tree)
    target = root / CODE_FOLDER / digest
    if not accept_copy(target):
        _write(tree, target)
    return digest, [_text(os.fsencode(word)) for word in tree.left_out]


def _pathspec(place: Path, not_code: Sequence[Path]) -> list[str]:
    inside = [path.resolve().relative_to(place.resolve()) for path in not_code if path.resolve().is_relative_to(place.resolve())]
    # runs may lie beside the code itself; the copies of it are never code
    return ["--", ":/", *(f":(top,exclude,literal){path if path.parts else CODE_FOLDER}" for path in inside)]


def _read(place: Path, names: Sequence[str]) -> _Tree:
    tree, links, total = _Tree(), set[str](), 0
    for name in names:
        path = place / name
        if path.is_symlink():
            links.add(name)
        elif links and not links.isdisjoint(map(str, Path(name).parents)):
            pass  # deleted: a link took the place of its folder
        elif path.is_dir():
            tree.left_out.append(f"{name.rstrip('/')} (a repository of its own)")
        elif path.is_file():  # else it is deleted, and so it is in the copy
            kept, reason = _read_file(path, TOTAL_LIMIT_BYTES - total)
            if kept is None:
                tree.left_out.append(f"{name} ({reason})")
            else:
                tree.files[name] = kept
                total += len(kept[0])
    _add_links(tree, place, sorted(links))
    return tree


def _read_file(path: Path, room: int) -> tuple[tuple[bytes, bool] | None, str]:
    """Content and executable bit, or why it stays behind."""
    try:
        status = path.stat()
        if status.st_size > FILE_LIMIT_BYTES:
            return None, f"{status.st_size / 2**20:.0f} MiB, the most is {FILE_LIMIT_BYTES >> 20}"
        if status.st_size > room:
            return None, f"the code would be above {TOTAL_LIMIT_BYTES >> 20} MiB"
        return (path.read_bytes(), bool(status.st_mode & stat.S_IXUSR)), ""
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"


def _add_links(tree: _Tree, place: Path, names: Sequence[str]) -> None:
    """Links to what is in the copy, straight to their last target, so that none leads back into the live tree."""
    folders = {str(parent) for name in tree.files for parent in Path(name).parents}
    real = os.path.realpath(place)
    for name in names:
        link = os.path.join(real, name)
        end = os.path.realpath(link)
        inside = os.path.relpath(end, real)
        if inside in tree.files or inside in folders:
            tree.links[name] = os.path.relpath(end, os.path.dirname(link))
        else:
            tree.left_out.append(f"{name} (a link to {os.readlink(link)}, which is not in the code)")


def _digest(tree: _Tree) -> str:
    entries = {name: (b"x" if executable else b"f", hash_of(raw)) for name, (raw, executable) in tree.files.items()}
    entries |= {name: (b"l", hash_of(os.fsencode(target))) for name, target in tree.links.items()}
    return digest_of(entries)


def _write(tree: _Tree, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        make_private(target.parent)
    try:
        for folder in {str((temporary / name).parent) for name in (*tree.files, *tree.links)} | {str(temporary)}:
            os.makedirs(folder, exist_ok=True)
        for name, (raw, executable) in tree.files.items():
            path = temporary / name
            path.write_bytes(raw)
            if executable:
                path.chmod(path.stat().st_mode | 0o111)
        for name, link in tree.links.items():
            os.symlink(link, temporary / name)
        sync_all([temporary / name for name in tree.files])
        temporary.rename(target)
    except OSError:
        if not accept_copy(target):  # else another submitter was faster, with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _git(place: Path, *words: str) -> bytes | None:
    # optional locks would fail a commit that the user makes at this moment
    command = ["git", "--no-optional-locks", "-C", str(place), *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

"""The code of a run: its commit and uncommitted changes, and a copy of it for a run that starts hours later."""

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ropewalk import cluster
from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.code_copy import CACHE, accept_copy
from ropewalk.cluster.run.directory import CODE_FOLDER
from ropewalk.cluster.run.files import make_private, sync_all
from ropewalk.cluster.text import counted

DIFF_LIMIT_BYTES = 1 << 20
NAMES_LIMIT = 100
SOURCE = "src"  # of a checkout of this program: what PYTHONPATH names
FILE_LIMIT_BYTES = 16 << 20
TOTAL_LIMIT_BYTES = 256 << 20

# a copy holds the bytes of the work tree, whatever .gitattributes say: these run, and these the digest is checked against
RAW = "* -text -ident -filter !working-tree-encoding\n"
SETTINGS = ("core.autocrlf=false", "core.hooksPath=/dev/null", "core.looseCompression=0", "core.fsync=none")


class Checkout(NamedTuple):
    """The code that a run depends on."""

    root: Path | None  # None: there is no repository
    folder: str = ""  # in it, from which modules are imported
    is_program: bool = False  # this program itself, and not the user's project


def checkout() -> Checkout:
    """Return the checkout that this program runs from, else the user's repository around the current directory."""
    home = Path(cluster.__file__).parents[3]  # HOME/src/ropewalk/cluster/__init__.py
    if (home / SOURCE).is_dir() and (home / ".git").exists():
        return Checkout(home, SOURCE, is_program=True)
    return Checkout(*(_work_tree(Path.cwd()) or (None, "")))


def project_of(directory: Path, root: Path | None) -> tuple[Path, str]:
    """The tree of the user's code around a directory (`root`, else git's work tree, else itself), and where in it that lies."""
    if root is None:
        found = None if (directory / ".git").exists() else _work_tree(directory)  # with .git in it, it is what git would say
        root = found[0] if found else directory
    root, directory = root.resolve(), directory.resolve()
    if not directory.is_relative_to(root):
        raise ConfigError(f"code.root: {root} does not hold the directory {directory}; leave it out, or name a folder above it")
    return root, "" if directory == root else str(directory.relative_to(root))


def _work_tree(directory: Path) -> tuple[Path, str] | None:
    """The top of git's work tree around a directory, and the path from there to it; None outside of one."""
    here = directory.resolve()
    if "GIT_DIR" not in os.environ and not any(os.path.lexists(folder / ".git") for folder in (here, *here.parents)):
        return None  # git would say so too, in twice the time of all else that a submission does
    lines = (_git(directory, "rev-parse", "--show-toplevel", "--show-prefix") or b"").split(b"\n")
    return (Path(os.fsdecode(lines[0])), os.fsdecode(lines[1])) if lines[0] else None


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
    """What a user should know of the code that travels with a run: its uncommitted files, and what was left out; else empty."""
    snapshot, left_out, text = code["snapshot"], code["left_out"], ""
    if left_out and not snapshot:
        return f"code: no snapshot, the run takes what is there when it starts: {left_out[0]}\n"
    if snapshot and code["uncommitted"]:
        commit = f"commit {code['commit'][:7]}" if code["commit"] else "no commit yet"
        files = counted(code["uncommitted"], "uncommitted file")
        text = f"code: {commit} with {files}, snapshot {snapshot[:12]}\n"
    return text + _left_out_notice("code", left_out)


def project_notice(project: Mapping[str, Any] | None) -> str:
    """What a user should know of the project of his own that travels with a run; empty where none does."""
    if not project:
        return ""
    text = f"project: {project['root']} travels with the run, snapshot {project['snapshot'][:12]}\n"
    return text + _left_out_notice("project", project["left_out"])


def _left_out_notice(what: str, left_out: Sequence[str]) -> str:
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f"{what}: not in the snapshot: {', '.join(left_out[:3])}{more}\n" if left_out else ""


# --- the copy


def take_snapshot(
    place: Path, root: Path, not_code: Sequence[Path] = (), exclude: Sequence[str] = ()
) -> tuple[str | None, list[str]]:
    """Copy the work tree (tracked files as they are, and untracked ones that git does not ignore) under a runs' root.

    Returns git's hash of the tree, which names the copy, and what was left out and why. Equal code is copied once. The user's
    repository is only read. Raises RopewalkError if git cannot copy.
    """
    listed = _names(place, not_code)
    if listed is None:
        return None, ["git does not list the files of the checkout (try `git status` there)"]
    kept = [name for name in listed if CACHE not in Path(name).parts and not any(fnmatch(name, word) for word in exclude)]
    files, links, left_out = _choose(place, kept)
    with TemporaryDirectory(prefix="ropewalk-code-") as folder:
        scratch = Path(folder)
        digest = _stage(scratch, place, files, links)
        target = root / CODE_FOLDER / digest
        if not accept_copy(target):
            _write(scratch, target, files)
    return digest, [_text(os.fsencode(word)) for word in left_out]


def code_of(place: Path, root: Path, not_code: Sequence[Path]) -> dict[str, Any]:
    """Return the `code_state` of a checkout, with the copy that `take_snapshot` makes under `root`."""
    code = code_state(place, not_code)
    code["snapshot"], code["left_out"] = take_snapshot(place, root, not_code)
    return code


def _names(place: Path, not_code: Sequence[Path]) -> list[str] | None:
    """The files of the work tree, tracked ones and those that git does not ignore; without git, all that are not hidden."""
    if _git(place, "rev-parse", "--git-dir") is None:
        found = []
        for where, folders, files in os.walk(place):
            here = Path(where)
            folders[:] = [name for name in folders if not name.startswith(".") and (here / name).resolve() not in not_code]
            found += [str((here / name).relative_to(place)) for name in files]
        return sorted(found)
    words = ("ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard")
    listed = _git(place, *words, *_pathspec(place, not_code))
    return None if listed is None else sorted({os.fsdecode(word) for word in listed.split(b"\0") if word})


def _pathspec(place: Path, not_code: Sequence[Path]) -> list[str]:
    inside = [path.resolve().relative_to(place.resolve()) for path in not_code if path.resolve().is_relative_to(place.resolve())]
    # runs may lie beside the code itself; the copies of it are never code
    return ["--", ":/", *(f":(top,exclude,literal){path if path.parts else CODE_FOLDER}" for path in inside)]


def _choose(place: Path, names: Sequence[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Files of the copy; its links with their targets; what is left out, each with the reason."""
    files, links, left_out, total = list[str](), set[str](), list[str](), 0
    for name in names:
        path = place / name
        if not links.isdisjoint(map(str, Path(name).parents)):
            continue  # deleted: a link took the place of its folder
        if path.is_symlink():
            links.add(name)
        elif path.is_dir():
            left_out.append(f"{name.rstrip('/')} (a repository of its own)")
        elif path.is_file():  # else it is deleted, and so it is in the copy
            reason = _why_not(path, TOTAL_LIMIT_BYTES - total)
            if reason:
                left_out.append(f"{name} ({reason})")
            else:
                files.append(name)
                total += path.stat().st_size
    targets, leading_out = _inner_links(place, sorted(links), files)
    return files, targets, left_out + leading_out


def _why_not(path: Path, room_bytes: int) -> str:
    size = path.stat().st_size
    if size > FILE_LIMIT_BYTES:
        return f"{size / 2**20:.0f} MiB, the most is {FILE_LIMIT_BYTES >> 20}"
    if size > room_bytes:
        return f"the code would be above {TOTAL_LIMIT_BYTES >> 20} MiB"
    return "" if os.access(path, os.R_OK) else "cannot be read: Permission denied"


def _inner_links(place: Path, names: Sequence[str], files: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Links to what is in the copy, straight to their last target, so that none leads back into the live tree; and the others."""
    known = {*files, *(str(parent) for name in files for parent in Path(name).parents)}
    real, targets, leading_out = os.path.realpath(place), dict[str, str](), list[str]()
    for name in names:
        link = os.path.join(real, name)
        end = os.path.realpath(link)
        if os.path.relpath(end, real) in known:
            targets[name] = os.path.relpath(end, os.path.dirname(link))
        else:
            leading_out.append(f"{name} (a link to {os.readlink(link)}, which is not in the code)")
    return targets, leading_out


def _stage(scratch: Path, place: Path, files: Sequence[str], links: Mapping[str, str]) -> str:
    """Read files and links into a repository of their own, and return the hash of the tree that they are.

    What is hashed here is what is written later, whoever edits meanwhile.
    """
    _in_scratch(scratch, scratch, "init", "-q", "--template=")
    (scratch / ".git/info").mkdir()
    (scratch / ".git/info/attributes").write_text(RAW)
    kind, _, objects = _text(_git(place, "rev-parse", "--show-object-format", "--git-path", "objects") or b"").partition("\n")
    if objects and kind != "sha256":  # what was committed need not be written once more
        (scratch / ".git/objects/info/alternates").write_text(f"{os.path.abspath(place / objects.rstrip())}\n")
    linked = scratch / "links"
    linked.mkdir()
    for name, target in links.items():
        (linked / name).parent.mkdir(parents=True, exist_ok=True)
        (linked / name).symlink_to(target)
    for work_tree, names in ((place, files), (linked, links)):
        if not names:
            continue
        fed = b"".join(os.fsencode(name) + b"\0" for name in names)
        _in_scratch(scratch, work_tree, "update-index", "-z", "--add", "--remove", "--stdin", fed=fed)
    return _in_scratch(scratch, scratch, "write-tree").decode().strip()


def _write(scratch: Path, target: Path, files: Sequence[str]) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        make_private(target.parent)
    try:
        temporary.mkdir()
        _in_scratch(scratch, scratch, "checkout-index", "--all", f"--prefix={temporary.absolute()}/")
        sync_all([path for name in files if (path := temporary / name).exists()])
        temporary.rename(target)
    except (OSError, RopewalkError):
        if not accept_copy(target):  # else another submitter was faster, with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_scratch(scratch: Path, work_tree: Path, *words: str, fed: bytes = b"") -> bytes:
    """What git prints, over this work tree with the repository in `scratch`. Raises RopewalkError with its complaint."""
    settings = [word for setting in SETTINGS for word in ("-c", setting)]
    command = ["git", "-C", str(work_tree), *settings, f"--git-dir={scratch / '.git'}", "--work-tree=.", *words]
    environment = {**os.environ, "GIT_DEFAULT_HASH": "sha1"}  # every git knows it
    environment.pop("GIT_INDEX_FILE", None)  # as in a hook
    done = subprocess.run(command, env=environment, input=fed, capture_output=True, check=False)
    if done.returncode:
        complaint = " ".join(_text(done.stderr).split())
        raise RopewalkError(
            f"the code cannot be copied for the run: git {words[0]}: {complaint}; is there room in {scratch.parent}?"
        )
    return done.stdout


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

"""State of a run's code (commit, uncommitted changes), and copies of it for runs that start later."""

import logging
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
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

log = logging.getLogger(__name__)

DIFF_LIMIT_BYTES = 1 << 20
NAMES_LIMIT = 100
SOURCE = "src"  # import path in a checkout of this program
FILE_LIMIT_BYTES = 16 << 20
TOTAL_LIMIT_BYTES = 256 << 20
# names of files that usually hold secrets
SECRET_FILES: tuple[str, ...] = (
    *(".env", ".env.*", "*.env", ".netrc", ".npmrc", ".pypirc", ".git-credentials", ".pgpass", "kubeconfig"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.pem", "*.key", "*.p12", "*.pfx"),
    *("*credentials", "*credentials.json", "secrets.json", "secrets.toml", "secrets.yaml", "secrets.yml"),
)

# copy the exact bytes of the work tree regardless of .gitattributes, since they are executed and verified by the digest
RAW = "* -text -ident -filter !working-tree-encoding\n"
SETTINGS = ("core.autocrlf=false", "core.hooksPath=/dev/null", "core.looseCompression=0", "core.fsync=none")


class Checkout(NamedTuple):
    """Location of the code of a run."""

    root: Path | None  # None: there is no repository
    folder: str = ""  # below the root: import path of modules
    is_program: bool = False  # a checkout of this program rather than the user's project


def checkout() -> Checkout:
    """Return the checkout that this program runs from, else the user's repository around the current directory."""
    home = Path(cluster.__file__).parents[3]  # HOME/src/ropewalk/cluster/__init__.py
    if (home / SOURCE).is_dir() and (home / ".git").exists():
        return Checkout(home, SOURCE, is_program=True)
    return Checkout(*(_work_tree(Path.cwd()) or (None, "")))


def project_of(directory: Path, root: Path | None) -> tuple[Path, str]:
    """Return the tree of the user's code that contains a directory, and the directory's path in it.

    The tree is `root`, else git's work tree, else the directory itself. Raises ConfigError.
    """
    if root is None:
        work_tree = None if (directory / ".git").exists() else _work_tree(directory)  # with .git it is the top itself
        root = work_tree[0] if work_tree else directory
    root, directory = root.resolve(), directory.resolve()
    if not directory.is_relative_to(root):
        raise ConfigError(f"code.root: {root} does not contain {directory}; remove the key, or set it to a parent folder")
    return root, "" if directory == root else str(directory.relative_to(root))


def _work_tree(directory: Path) -> tuple[Path, str] | None:
    """Return the top of git's work tree that contains a directory, and the directory's path in it; None if there is none."""
    here = directory.resolve()
    if "GIT_DIR" not in os.environ and not any(os.path.lexists(folder / ".git") for folder in (here, *here.parents)):
        return None  # faster than asking git
    lines = (_git(directory, "rev-parse", "--show-toplevel", "--show-prefix") or b"").split(b"\n")
    return (Path(os.fsdecode(lines[0])), os.fsdecode(lines[1])) if lines[0] else None


# --- state for run.yaml


def code_state(tree: Path | None, not_code: Sequence[Path] = ()) -> dict[str, Any]:
    """Return commit, branch and uncommitted changes of a checkout, without the paths in `not_code`, such as runs."""
    state: dict[str, Any] = {"commit": None, "branch": None, "dirty": False, "uncommitted": 0, "snapshot": None, "left_out": []}
    arguments = ("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--no-renames")
    status = _git(tree, *arguments, *_pathspec(tree, not_code)) if tree else None
    if tree is None or status is None:
        return {**state, "untracked": [], "diff": ""}
    lines = _text(status).split("\0")
    head = dict(line.removeprefix("# branch.").split(" ", 1) for line in lines if line.startswith("# branch."))
    untracked = [line[2:] for line in lines if line.startswith("? ")]
    num_changed = sum(line[:2] in {"1 ", "u "} for line in lines)
    diff = _text(_git(tree, "diff", "HEAD") or b"").strip() if num_changed else ""
    if len(diff) > DIFF_LIMIT_BYTES:
        diff = f"{diff[:DIFF_LIMIT_BYTES]}\n... cut at {DIFF_LIMIT_BYTES} characters"
    state |= {"commit": None if head["oid"] == "(initial)" else head["oid"], "branch": head["head"]}
    state |= {"dirty": num_changed > 0, "uncommitted": num_changed + len(untracked)}
    return {**state, "untracked": untracked[:NAMES_LIMIT], "diff": diff}


def code_notice(code: Mapping[str, Any]) -> str:
    """Return a notice about uncommitted files and files left out of the code copy, or an empty string."""
    snapshot, left_out, text = code["snapshot"], code["left_out"], ""
    if left_out and not snapshot:
        return f"code: no snapshot, the run uses the code as it is when it starts: {left_out[0]}\n"
    if snapshot and code["uncommitted"]:
        commit = f"commit {code['commit'][:7]}" if code["commit"] else "no commit yet"
        files = counted(code["uncommitted"], "uncommitted file")
        text = f"code: {commit} with {files}, snapshot {snapshot[:12]}\n"
    return text + _left_out_notice("code", left_out)


def project_notice(project: Mapping[str, Any] | None) -> str:
    """Return a notice about the user's project that is copied with a run, or an empty string."""
    if not project:
        return ""
    text = f"project: {project['root']} is copied with the run, snapshot {project['snapshot'][:12]}\n"
    return text + _left_out_notice("project", project["left_out"])


def _left_out_notice(subject: str, left_out: Sequence[str]) -> str:
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f"{subject}: not in the snapshot: {', '.join(left_out[:3])}{more}\n" if left_out else ""


# --- the copy


def take_snapshot(
    tree: Path, root: Path, not_code: Sequence[Path] = (), exclude: Sequence[str] = ()
) -> tuple[str | None, list[str]]:
    """Copy a work tree (tracked files, and untracked files that git does not ignore) to a folder under a runs' root.

    Returns git's hash of the tree, which is the name of the copy, and the files that were left out with reasons. Equal code is
    copied only once. The user's repository is only read. Raises RopewalkError if git cannot copy.
    """
    has_git = _has_git(tree)
    listed = _names(tree, not_code, has_git=has_git)
    if listed is None:
        return None, ["git does not list the files of the checkout (try `git status` there)"]
    names = [name for name in listed if CACHE not in Path(name).parts and not any(fnmatch(name, pattern) for pattern in exclude)]
    if secret := [name for name in names if _holds_secrets(name)]:
        log.warning(
            "%s: copied with the run, and may hold secrets; add %s to .gitignore or, in a project, to code.exclude",
            tree,
            ", ".join(secret[:3]) + (f" and {len(secret) - 3} more" if len(secret) > 3 else ""),
        )
    files, links, left_out = _choose(tree, names)
    if not has_git:
        left_out += [f"{name} (hidden, or may hold secrets)" for name in sorted({*_walk(tree, not_code)} - {*listed})]
    with TemporaryDirectory(prefix="ropewalk-code-") as folder:
        scratch = Path(folder)
        digest = _stage(scratch, tree, files, links)
        target = root / CODE_FOLDER / digest
        if not accept_copy(target):
            _write(scratch, target, files)
        with suppress(OSError):  # it may be another user's
            os.utime(target)  # `gc` keeps recent copies: the run that will name it does not exist yet
    return digest, [_text(os.fsencode(pattern)) for pattern in left_out]


def code_of(tree: Path, root: Path, not_code: Sequence[Path]) -> dict[str, Any]:
    """Return the `code_state` of a checkout, with the copy that `take_snapshot` makes under `root`."""
    code = code_state(tree, not_code)
    code["snapshot"], code["left_out"] = take_snapshot(tree, root, not_code)
    return code


def _names(tree: Path, not_code: Sequence[Path], *, has_git: bool) -> list[str] | None:
    """Return the tracked files and the untracked ones that git does not ignore.

    Without git: all files that are not hidden, not in hidden folders, and not known to hold secrets.
    """
    if not has_git:
        return sorted(name for name in _walk(tree, not_code) if not Path(name).name.startswith(".") and not _holds_secrets(name))
    arguments = ("ls-files", "-z", "--full-name", "--cached", "--others", "--exclude-standard")
    listed = _git(tree, *arguments, *_pathspec(tree, not_code))
    return None if listed is None else sorted({os.fsdecode(word) for word in listed.split(b"\0") if word})


def _has_git(tree: Path) -> bool:
    return _git(tree, "rev-parse", "--git-dir") is not None


def _walk(tree: Path, not_code: Sequence[Path]) -> Iterator[str]:
    for parent, folders, files in os.walk(tree):
        folder = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".") and (folder / name).resolve() not in not_code]
        yield from (str((folder / name).relative_to(tree)) for name in files)


def _holds_secrets(name: str) -> bool:
    return any(fnmatch(Path(name).name.lower(), pattern) for pattern in SECRET_FILES)


def _pathspec(tree: Path, not_code: Sequence[Path]) -> list[str]:
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


def _stage(scratch: Path, tree: Path, files: Sequence[str], links: Mapping[str, str]) -> str:
    """Add files and links to a temporary repository, and return the hash of their tree.

    The copy is written from this repository, so edits in between do not change it.
    """
    _in_scratch(scratch, scratch, "init", "-q", "--template=")
    (scratch / ".git/info").mkdir()
    (scratch / ".git/info/attributes").write_text(RAW)
    kind, _, objects = _text(_git(tree, "rev-parse", "--show-object-format", "--git-path", "objects") or b"").partition("\n")
    if objects and kind != "sha256":  # reuse the objects of committed files
        (scratch / ".git/objects/info/alternates").write_text(f"{os.path.abspath(tree / objects.rstrip())}\n")
    linked = scratch / "links"
    linked.mkdir()
    for name, target in links.items():
        (linked / name).parent.mkdir(parents=True, exist_ok=True)
        (linked / name).symlink_to(target)
    for work_tree, names in ((tree, files), (linked, links)):
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
        if not accept_copy(target):  # otherwise another submission was faster, with the same content
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _in_scratch(scratch: Path, work_tree: Path, *arguments: str, fed: bytes = b"") -> bytes:
    """Run git on a work tree with the repository in `scratch`, and return its output. Raises RopewalkError."""
    settings = [option for setting in SETTINGS for option in ("-c", setting)]
    command = ["git", "-C", str(work_tree), *settings, f"--git-dir={scratch / '.git'}", "--work-tree=.", *arguments]
    environment = {**os.environ, "GIT_DEFAULT_HASH": "sha1"}  # supported by all versions of git
    environment.pop("GIT_INDEX_FILE", None)  # set in git hooks
    result = subprocess.run(command, env=environment, input=fed, capture_output=True, check=False)
    if result.returncode:
        message = " ".join(_text(result.stderr).split())
        raise RopewalkError(
            f"the code cannot be copied for the run: git {arguments[0]}: {message}; check the free space in {scratch.parent}"
        )
    return result.stdout


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _git(folder: Path, *arguments: str) -> bytes | None:
    # optional locks could make a concurrent commit of the user fail
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None

"""State of a run's code (commit, uncommitted changes), and copies of it for runs that start later."""

import logging
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ropewalk import cluster
from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.code_copy import accept_copy
from ropewalk.cluster.run.directory import CODE_FOLDER
from ropewalk.cluster.run.files import make_private, sync_all
from ropewalk.cluster.text import counted
from ropewalk.jobs.runs.submit.code_files import as_text, ask_git, pathspec, select_code

log = logging.getLogger(__name__)

DIFF_LIMIT_BYTES = 1 << 20
NAMES_LIMIT = 100
SOURCE = "src"  # import path in a checkout of this program
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
    lines = (ask_git(directory, "rev-parse", "--show-toplevel", "--show-prefix") or b"").split(b"\n")
    return (Path(os.fsdecode(lines[0])), os.fsdecode(lines[1])) if lines[0] else None


# --- state for run.yaml


def code_state(tree: Path | None, not_code: Sequence[Path] = ()) -> dict[str, Any]:
    """Return commit, branch and uncommitted changes of a checkout, without the paths in `not_code`, such as runs."""
    state: dict[str, Any] = {"commit": None, "branch": None, "dirty": False, "uncommitted": 0, "snapshot": None, "left_out": []}
    arguments = ("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all", "--no-renames")
    status = ask_git(tree, *arguments, *pathspec(tree, not_code)) if tree else None
    if tree is None or status is None:
        return {**state, "untracked": [], "diff": ""}
    lines = as_text(status).split("\0")
    head = dict(line.removeprefix("# branch.").split(" ", 1) for line in lines if line.startswith("# branch."))
    untracked = [line[2:] for line in lines if line.startswith("? ")]
    num_changed = sum(line[:2] in {"1 ", "u "} for line in lines)
    diff = as_text(ask_git(tree, "diff", "HEAD") or b"").strip() if num_changed else ""
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
    selected = select_code(tree, not_code, exclude)
    files, links, left_out = selected.files, selected.links, selected.left_out
    if files is None:
        return None, left_out
    with TemporaryDirectory(prefix="ropewalk-code-") as folder:
        scratch = Path(folder)
        digest = _stage(scratch, tree, files, links)
        target = root / CODE_FOLDER / digest
        if not accept_copy(target):
            _write(scratch, target, files)
        with suppress(OSError):  # it may be another user's
            os.utime(target)  # `gc` keeps recent copies: the run that will name it does not exist yet
    return digest, left_out


def code_of(tree: Path, root: Path, not_code: Sequence[Path]) -> dict[str, Any]:
    """Return the `code_state` of a checkout, with the copy that `take_snapshot` makes under `root`."""
    code = code_state(tree, not_code)
    code["snapshot"], code["left_out"] = take_snapshot(tree, root, not_code)
    return code


def _stage(scratch: Path, tree: Path, files: Sequence[str], links: Mapping[str, str]) -> str:
    """Add files and links to a temporary repository, and return the hash of their tree.

    The copy is written from this repository, so edits in between do not change it.
    """
    _in_scratch(scratch, scratch, "init", "-q", "--template=")
    (scratch / ".git/info").mkdir()
    (scratch / ".git/info/attributes").write_text(RAW)
    kind, _, objects = as_text(ask_git(tree, "rev-parse", "--show-object-format", "--git-path", "objects") or b"").partition("\n")
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
        message = " ".join(as_text(result.stderr).split())
        raise RopewalkError(
            f"the code cannot be copied for the run: git {arguments[0]}: {message}; check the free space in {scratch.parent}"
        )
    return result.stdout

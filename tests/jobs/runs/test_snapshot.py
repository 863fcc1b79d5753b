"""The copy of the code that travels with a run: whole, shared by equal code, and what stays behind is named."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ropewalk import cluster
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.code_copy import digest_on_disk
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.cluster.run.files import MODE_VARIABLE
from ropewalk.jobs.runs.submit import code_files
from ropewalk.jobs.runs.submit import submit as submission
from ropewalk.jobs.runs.submit.snapshot import checkout, code_notice, code_state, take_snapshot
from tests.jobs.shell import Shell, pretrain


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@here"]
    return subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit: a.py, run.sh (executable), pkg/b.py."""
    folder = tmp_path / "tree"
    (folder / "pkg").mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / ".gitignore").write_text("*.log\n")
    (folder / "a.py").write_text("A = 1\n")
    (folder / "pkg/b.py").write_text("B = 1\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def copied(tree: Path, root: Path) -> tuple[Path, list[str]]:
    digest, left_out = take_snapshot(tree, root)
    return root / CODE_FOLDER / str(digest), left_out


def test_the_work_tree_is_copied_as_it_is(tree: Path, tmp_path: Path) -> None:
    (tree / "a.py").write_text("A = 2\n")  # changed
    (tree / "pkg/b.py").unlink()  # deleted
    (tree / "new é.py").write_text("N = 1\n")  # untracked
    (tree / "noise.log").write_text("x")  # ignored
    copy, left_out = copied(tree, tmp_path / "runs")
    assert names(copy) == {".gitignore", "a.py", "run.sh", "new é.py"}
    assert (copy / "a.py").read_text() == "A = 2\n"
    assert os.access(copy / "run.sh", os.X_OK)
    assert not (copy / "a.py").stat().st_mode & 0o111
    assert left_out == []
    state = code_state(tree)
    assert state["dirty"]
    assert (state["uncommitted"], state["untracked"], state["branch"]) == (3, ["new é.py"], "main")
    assert "+A = 2" in state["diff"]
    assert state["commit"] == git(tree, "rev-parse", "HEAD").strip()


def test_equal_code_is_copied_once_and_other_code_apart(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    first, _ = copied(tree, root)
    before = first.stat().st_ino
    again, _ = copied(tree, root)
    assert again == first
    assert first.stat().st_ino == before, "an existing copy is not written again"
    observed = {first}
    for change in (
        lambda: (tree / "a.py").write_text("A = 3\n"),
        lambda: (tree / "a.py").chmod(0o755),
        lambda: (tree / "a.py").rename(tree / "c.py"),
    ):
        change()
        observed.add(copied(tree, root)[0])
    assert len(observed) == 4
    assert {path.name for path in (root / CODE_FOLDER).glob("[!.]*")} == {path.name for path in observed}, (
        "nothing half-written is left"
    )
    assert RunDir.all(root) == []


def test_links_stay_links_and_never_lead_out(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    (tree / "noise.log").write_text("ignored")
    links = {
        "pkg/good": "../a.py",
        "folder": "pkg",
        "absolute": str(tree / "a.py"),
        "twice": "pkg/good",
        "out": "../outside",
        "broken": "nowhere",
        "ignored": "noise.log",
    }
    for name, target in links.items():
        (tree / name).symlink_to(target)
    copy, left_out = copied(tree, tmp_path / "runs")
    for name in ("pkg/good", "folder", "absolute", "twice"):
        assert (copy / name).is_symlink()
        assert (copy / name).resolve().is_relative_to(copy.resolve())
    assert (copy / "absolute").read_text() == (copy / "twice").read_text() == "A = 1\n"
    assert (copy / "folder/b.py").is_file()
    assert sorted(word.partition(" ")[0] for word in left_out) == ["broken", "ignored", "out"]


def test_a_folder_that_became_a_link(tree: Path, tmp_path: Path) -> None:
    shutil.move(tree / "pkg", tree / "moved")
    (tree / "pkg").symlink_to("moved")
    copy, _ = copied(tree, tmp_path / "runs")
    assert (copy / "pkg").is_symlink()
    assert (copy / "pkg/b.py").read_text() == "B = 1\n"


def test_what_is_too_large_or_not_ours_is_named(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_files, "FILE_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr(code_files, "TOTAL_LIMIT_BYTES", 2 << 20)
    (tree / "big.bin").write_bytes(bytes(3 << 20))
    for number in range(3):
        (tree / f"part{number}").write_bytes(bytes((1 << 20) - 1000))
    other = tree / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "x").touch()
    git(other, "add", ".")
    git(other, "commit", "-q", "-m", "x")
    copy, left_out = copied(tree, tmp_path / "runs")
    assert {"part0", "part1", "a.py"} <= names(copy)
    assert sorted(left_out) == [
        "big.bin (3 MiB, the limit is 1)",
        "other (a repository of its own)",
        "part2 (the code would exceed 2 MiB)",
    ]
    code = {**code_state(tree), "snapshot": copy.name, "left_out": left_out}
    assert "not in the snapshot: big.bin (3 MiB, the limit is 1), " in code_notice(code)


def test_the_name_is_git_s_own_hash_of_the_tree(tree: Path, tmp_path: Path) -> None:
    """So anybody can check a copy, and it names a clean checkout's commit."""
    copy, _ = copied(tree, tmp_path / "runs")
    assert copy.name == digest_on_disk(copy) == git(tree, "rev-parse", "HEAD^{tree}").strip()


def test_a_copy_holds_the_bytes_of_the_work_tree(tree: Path, tmp_path: Path) -> None:
    """Neither filters nor line endings nor what archives leave out change them, and the repository gets no object."""
    (tree / ".gitattributes").write_text("*.py text eol=crlf filter=no\n*.u working-tree-encoding=UTF-16\npkg export-ignore\n")
    git(tree, "config", "filter.no.clean", "false")
    git(tree, "config", "core.autocrlf", "true")
    content = {"a.py": b"A = 1\r\n$Id$\n", "x.u": "x = 1\n".encode("utf-16"), "pkg/b.py": b"B = 1\n"}
    for name, raw in content.items():
        (tree / name).write_bytes(raw)
    before = sorted((tree / ".git").rglob("*"))
    copy, left_out = copied(tree, tmp_path / "runs")
    assert {name: (copy / name).read_bytes() for name in content} == content
    assert left_out == []
    assert copied(tree, tmp_path / "runs")[0] == copy
    assert sorted((tree / ".git").rglob("*")) == before


def test_submodules_and_tracked_files_that_are_ignored(tree: Path, tmp_path: Path) -> None:
    (tree / "kept.log").write_text("tracked")
    git(tree, "add", "-f", "kept.log")
    git(tree, "clone", "-q", str(tree), str(tmp_path / "library"))
    git(tree, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "library"), "library")
    copy, left_out = copied(tree, tmp_path / "runs")
    assert names(copy) == {".gitignore", ".gitmodules", "a.py", "kept.log", "run.sh", "pkg/b.py"}
    assert left_out == ["library (a repository of its own)"]


def test_runs_inside_the_checkout_are_no_code(tree: Path) -> None:
    root = tree / "runs"
    RunDir.create("x", {}, root)
    first = take_snapshot(tree, root, [root])
    assert take_snapshot(tree, root, [root]) == first
    assert names(root / CODE_FOLDER / str(first[0])) == {".gitignore", "a.py", "run.sh", "pkg/b.py"}
    assert code_state(tree, [root])["uncommitted"] == 0
    beside = take_snapshot(tree, tree, [tree])
    assert take_snapshot(tree, tree, [tree]) == beside, "a copy is never part of a copy"


def test_an_installed_program_takes_the_repository_where_the_user_stands(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "__file__", str(tmp_path / "python3.11/site-packages/ropewalk/cluster/__init__.py"))
    monkeypatch.chdir(tree / "pkg")
    assert checkout() == (tree, "pkg/", False)
    root = tmp_path / "runs"
    origin = submission.submission_record((), root)
    run = RunDir.create("x", origin, root)
    assert run.code == root / CODE_FOLDER / origin["code"]["snapshot"] / "pkg"
    assert (run.code / "b.py").is_file()
    assert (run.project, run.code_is_program) == (run.code, False), "it is not this program, and shadows none of it"
    assert str(tmp_path) not in json.dumps(origin["code"])
    monkeypatch.chdir(tmp_path)
    assert checkout() == (None, "", False)
    assert submission.submission_record((), root)["code"]["snapshot"] is None


def test_a_repository_without_a_commit_and_a_place_without_git(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / ".git")
    assert code_state(tree)["commit"] is None
    (tree / "linked").symlink_to("pkg")
    (tree / "data").symlink_to(tmp_path)
    without, left_out = copied(tree, tmp_path / "runs")
    assert names(without) == {"a.py", "run.sh", "pkg/b.py", "linked"}
    assert (without / "linked/b.py").is_file()
    assert [name for name in left_out if name.startswith("data ")] == [f"data (a link to {tmp_path}, which is not in the code)"]
    git(tree, "init", "-q")
    copy, _ = copied(tree, tmp_path / "runs")
    assert "a.py" in names(copy)
    assert code_state(tree)["commit"] is None


def test_without_git_hidden_files_and_files_with_secrets_stay_behind(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / ".git")
    secret = [".env", ".netrc", "deploy.key", "pkg/.aws-credentials", "pkg/credentials.json"]
    for name in secret:
        (tree / name).write_text("OPENAI_API_KEY=sk-1")
    copy, left_out = copied(tree, tmp_path / "runs")
    assert names(copy) == {"a.py", "run.sh", "pkg/b.py"}
    assert left_out == [f"{name} (hidden, or may hold secrets)" for name in sorted([*secret, ".gitignore"])]


def test_files_that_may_hold_secrets_are_named_where_git_lists_them(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tree / "pkg/secrets.py").write_text("")
    copied(tree, tmp_path / "runs")
    assert caplog.messages == []
    (tree / ".env").write_text("KEY=1")
    for _ in range(2):  # as the code and as the project
        copy, _ = copied(tree, tmp_path / "runs")
    assert ".env" in names(copy)
    assert caplog.text.count("copied with the run, and may hold secrets; add .env to .gitignore") == 1


def test_submit_says_what_travels_and_a_dry_run_takes_nothing(
    shell: Shell, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "src").mkdir()
    monkeypatch.setattr(cluster, "__file__", str(tree / "src/ropewalk/cluster/__init__.py"))
    shell("submit", *pretrain("--on", "shipping", "--dry-run"))
    assert not (tmp_path / "runs").exists()
    shell("submit", *pretrain("--on", "shipping"))
    assert shell.err == "", "a clean checkout is nothing to talk about"
    (tree / "a.py").write_text("A = 2\n")
    run = RunDir(tmp_path / "runs" / shell("submit", *pretrain("--on", "shipping")).strip())
    snapshot = run.record["code"]["snapshot"]
    commit = git(tree, "rev-parse", "HEAD")[:7]
    assert shell.err == f"code: commit {commit} with 1 uncommitted file, snapshot {snapshot[:12]}\n"
    assert run.code is not None
    assert (run.code.name, run.code_is_program) == ("src", True)
    assert (run.code.parent / "a.py").read_text() == "A = 2\n"
    live = RunDir(tmp_path / "runs" / shell("submit", *pretrain("--on", "slow")).strip())
    assert (live.code, shell.err) == (None, "")
    assert len(list((tmp_path / "runs" / CODE_FOLDER).glob("[!.]*"))) == 2


def test_a_copy_that_somebody_has_changed_is_not_used(tree: Path, tmp_path: Path) -> None:
    """Nor one that was put there before, under the name that equal code will have."""
    root = tmp_path / "runs"
    copy, _ = copied(tree, root)
    (copy / "a.py").write_text("import os; os.system('mail')\n")
    (copy / "sitecustomize.py").touch()
    assert copied(tree, root)[0] == copy
    assert (copy / "a.py").read_text() == "A = 1\n"
    assert not (copy / "sitecustomize.py").exists()
    shutil.rmtree(copy)
    (tmp_path / "elsewhere").mkdir()
    copy.symlink_to(tmp_path / "elsewhere")
    assert not copied(tree, root)[0].is_symlink()


def test_bytecode_beside_a_copy_is_not_used(tree: Path, tmp_path: Path) -> None:
    """Python would run it in place of the source."""
    root = tmp_path / "runs"
    copy, _ = copied(tree, root)
    (copy / "pkg/__pycache__").mkdir()
    (copy / "pkg/__pycache__/b.cpython-311.pyc").write_bytes(b"x")
    before = copy.stat().st_ino
    assert copied(tree, root)[0].stat().st_ino == before, "the rest is as it was"
    assert not (copy / "pkg/__pycache__").exists()


def test_nobody_else_enters_a_run_or_its_code(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def modes(root: Path) -> list[int]:
        take_snapshot(tree, root)
        run = RunDir.create("toy", {}, root)
        return [path.stat().st_mode & 0o7777 for path in (run.path, root / CODE_FOLDER)]

    assert modes(tmp_path / "mine") == [0o700, 0o700]
    monkeypatch.setenv(MODE_VARIABLE, "2770")
    assert modes(tmp_path / "ours") == [0o2770, 0o2770]
    monkeypatch.setenv(MODE_VARIABLE, "rwx")
    with pytest.raises(ConfigError, match="must be an octal mode as for chmod"):
        modes(tmp_path / "nobodys")

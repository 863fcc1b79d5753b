"""Environments that travel: built once, unpacked once a node, whatever dies meanwhile."""

import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import EXIT_NEVER_RETRY, ConfigError
from ropewalk.cluster.packages import use
from ropewalk.cluster.packages.archive import FOLDER, adopt, node_disk, pack, unpack
from ropewalk.cluster.spec import RunState
from tests.cluster.conftest import ToyRun
from tests.fork_server import SERVER
from tests.patience import HANG_SECONDS

PYTHON = f'#!/bin/sh\nexec {sys.executable} "$@"\n'


def environment(folder: Path, files: int = 50) -> Path:
    """An environment with an interpreter and a library of some files."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text(PYTHON)
    (folder / "bin/python").chmod(0o755)
    (folder / "bin/python3").symlink_to("python")
    for number in range(files):
        (folder / f"lib/part{number:03}.py").parent.mkdir(exist_ok=True)
        (folder / f"lib/part{number:03}.py").write_text(f"value = {number}\n" * 200)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs" / FOLDER


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpack_on(disk: Path, packed: Path, mark: Path) -> None:
    """Be one of several nodes, each with a disk of its own."""
    disk.mkdir(parents=True, exist_ok=True)
    unpack(packed, disk, lambda folder: mark.open("a").write(f"{folder.name}\n"))


def stop_in_the_middle(disk: Path, packed: Path) -> None:
    """Be a node that dies when the half is unpacked."""
    disk.mkdir(parents=True, exist_ok=True)

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    unpack(packed, disk, die)


@pytest.mark.parametrize("programs", [os.environ["PATH"], "/nowhere"], ids=["tar", "python"])
def test_the_same_content_has_the_same_name_and_comes_out_as_it_went_in(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: str
) -> None:
    monkeypatch.setenv("PATH", programs)
    folder = environment(tmp_path / "env")
    name = pack(folder, store)
    assert pack(folder, store) == name
    assert [path.name for path in store.iterdir()] == [name]
    unpacked = unpack(store / name, tmp_path, lambda _: None)
    assert unpacked.name == name.removesuffix(".tar.zst")
    assert contents(unpacked) == contents(folder)
    assert os.readlink(unpacked / "bin/python3") == "python"
    (folder / "lib/part000.py").write_text("other = 1\n")
    assert pack(folder, store) != name


def test_eight_nodes_unpack_at_once_and_one_that_was_killed_begins_anew(store: Path, tmp_path: Path) -> None:
    folder = environment(tmp_path / "env")
    packed = store / pack(folder, store)
    killed = SERVER.Process(target=stop_in_the_middle, args=(tmp_path / "disk0", packed))
    killed.start()
    killed.join(HANG_SECONDS)
    assert killed.exitcode == -signal.SIGKILL
    assert not list((tmp_path / "disk0").glob("*.ready"))
    (next(path for path in (tmp_path / "disk0").iterdir() if path.is_dir()) / "lib/part000.py").write_text("half of")
    # eight disks, and on each three agents at the same time: virtual nodes, or runs that share the node
    marks = [tmp_path / f"mark{node}" for node in range(8)]
    nodes = [SERVER.Process(target=unpack_on, args=(tmp_path / f"disk{k}", packed, marks[k])) for k in range(8) for _ in range(3)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join(HANG_SECONDS)
    assert [node.exitcode for node in nodes] == [0] * 24
    for node, mark in enumerate(marks):
        unpacked = next(path for path in (tmp_path / f"disk{node}").iterdir() if path.is_dir())
        assert mark.read_text() == f"{unpacked.name}\n", "it was unpacked once"
        assert contents(unpacked) == contents(folder)


def test_a_damaged_archive_and_a_full_disk_are_named(store: Path, tmp_path: Path) -> None:
    packed = store / pack(environment(tmp_path / "env"), store)
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be unpacked to"):
        unpack(packed, tmp_path / "..", lambda _: None)
    with pytest.raises(ConfigError, match="neither a folder nor one of"):
        adopt(tmp_path / "env.zip", store)


def test_an_archive_of_conda_pack_is_unpacked_and_finished(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = environment(tmp_path / "env")
    (folder / "conda-meta").mkdir()
    (folder / "conda-meta/history").write_text("")
    (folder / "bin/conda-unpack").write_text(
        "import pathlib, sys\nprint(pathlib.Path(sys.argv[0]).parent, file=open(sys.argv[0] + '.ran', 'a'))\n"
    )
    with tarfile.open(tmp_path / "env.tar.gz", "w:gz") as tar:
        tar.add(folder, ".")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (use.ENTERED_VARIABLE, "CONDA_PREFIX", "PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    name = adopt(tmp_path / "env.tar.gz", store)
    record = {"packages": {"archive": name, "passed_on": True}}
    assert use.enter(record, store.parent) is None
    unpacked = node_disk() / name.partition(".")[0]
    assert os.environ["CONDA_PREFIX"] == str(unpacked)
    assert os.environ["PATH"].startswith(f"{unpacked}/bin:")
    assert (unpacked / "bin/conda-unpack.ran").read_text() == f"{unpacked}/bin\n"
    assert use.enter(record, store.parent) is None
    assert len((unpacked / "bin/conda-unpack.ran").read_text().splitlines()) == 1
    (store / name).unlink()
    with pytest.raises(ConfigError, match="the run's environment is gone"):
        use.enter(record, store.parent)


def disk_of_runs() -> Path:
    return Path(os.environ["TMPDIR"]) / f"ropewalk-packages-{os.getuid()}"


@pytest.mark.parametrize("engine", [pytest.param("process", marks=pytest.mark.soak("make test runs it in ranks")), "ranks"])
def test_a_job_runs_in_its_environment_as_a_whole(toy: Callable[..., ToyRun], tmp_path: Path, engine: str) -> None:
    packed = pack(environment(tmp_path / "env"), tmp_path / "runs" / FOLDER)
    names = {use.ENTERED_VARIABLE: "", "VIRTUAL_ENV": ""}
    run = toy("variables", engine, packages={"archive": packed, "passed_on": False}, required_environment=names)
    outcome = run.finish()
    assert outcome.state is RunState.SUCCEEDED, outcome.cause
    folder = Path(outcome.results[use.ENTERED_VARIABLE])
    assert (folder.name, outcome.results["VIRTUAL_ENV"]) == (packed.partition(".")[0], str(folder))
    assert folder.parent == disk_of_runs(), "it outlives the run"
    shutil.rmtree(folder.parent)


def test_an_environment_without_ropewalk_is_named(toy: Callable[..., ToyRun], tmp_path: Path) -> None:
    folder = environment(tmp_path / "env")
    (folder / "bin/python").write_text("#!/bin/sh\necho 'ModuleNotFoundError: ropewalk' >&2\nexit 1\n")
    packed = pack(folder, tmp_path / "runs" / FOLDER)
    outcome = toy("variables", "process", packages={"archive": packed, "passed_on": False}).finish()
    assert outcome.exit_code == EXIT_NEVER_RETRY
    assert "does not run in this environment (ModuleNotFoundError: ropewalk); add ropewalk[train] to" in outcome.cause
    shutil.rmtree(disk_of_runs())

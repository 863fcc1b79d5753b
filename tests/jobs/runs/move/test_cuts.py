"""Copies that are cut, or whose client is killed: all arrives in the end, and hardly anything twice."""

import io
import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.code_copy import digest_on_disk
from ropewalk.cluster.run.directory import CODE_FOLDER, RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.names import ARRIVING_FOLDER, CHECKPOINTS
from ropewalk.jobs.cli.known_runs import STATE_VARIABLE
from ropewalk.jobs.runs.move.place import Place
from tests.patience import Patience, until

COPY = """import json, sys
from ropewalk.jobs.cli.moving import Counter, Move
Move(sys.argv[1], "one", "two")._copy(json.load(sys.stdin), Counter(sys.argv[1]))
"""


def ended_run(root: Path, checkpoint_bytes: int) -> RunDir:
    """A run with code, and a checkpoint of random bytes in two files of different sizes."""
    code = root / CODE_FOLDER / "new"
    code.mkdir(parents=True)
    (code / "train.py").write_text("print(1)\n")
    (code / "link.py").symlink_to("train.py")
    digest = digest_on_disk(code)
    code.rename(code.with_name(digest))
    record = {
        "job": "command",
        "config": {},
        "cluster": "one",
        "code": {"snapshot": digest, "folder": ""},
        "resources": {"nodes": 1},
    }
    run = RunDir.create("ended", record, root)
    run.begin_attempt()
    (folder := run.checkpoints / "step-00000007").mkdir(parents=True)
    for name, size in (("rank-0", checkpoint_bytes // 4), ("rank-1", checkpoint_bytes * 3 // 4)):
        (folder / name).write_bytes(random.Random(name).randbytes(size))
    write_json(folder / "manifest.json", {"step": 7})
    return run


def same_files(run: RunDir, copy: RunDir) -> bool:
    names = [str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return all((copy.path / name).read_bytes() == (run.path / name).read_bytes() for name in names if name != "requests.json")


def test_a_copy_that_is_cut_anywhere_goes_on_there(tmp_path: Path) -> None:
    run = ended_run(tmp_path / "there", 1_000_000)
    source, target = Place(tmp_path / "there", run.id), Place(tmp_path / "here", run.id)
    left, drawn, sent = source.leave("two", {}), random.Random(0), 0
    for cut in range(21):
        missing = target.missing(left["attempt"], left["contents"])
        source.send(missing["wanted"], stream := io.BytesIO())
        size = len(stream.getvalue()) if cut == 20 else drawn.randrange(1, max(2, len(stream.getvalue()) // 8))
        complete = target.receive(io.BufferedReader(io.BytesIO(stream.getvalue()[:size])))["complete"]  # type: ignore[arg-type]
        sent += size
        assert complete is (cut == 20)
        assert not target.run.path.exists()
    checkpoint = sum(each["size"] for each in left["contents"] if f"/{CHECKPOINTS}/" in each["path"])
    assert sent < 1.05 * checkpoint
    target.put(left["contents"], [])
    assert same_files(run, target.run)
    assert (target.run.path.parent / CODE_FOLDER / run.record["code"]["snapshot"] / "link.py").is_symlink()
    assert target.missing(left["attempt"], left["contents"]) == {"arrived": False, "started": False, "wanted": []}
    target.put(left["contents"], [])  # the command was killed after it
    target.run.begin_attempt()
    assert target.missing(left["attempt"], left["contents"])["arrived"]


def test_a_content_that_changes_on_the_way_is_refused(tmp_path: Path) -> None:
    run = ended_run(tmp_path / "there", 1000)
    source, target = Place(tmp_path / "there", run.id), Place(tmp_path / "here", run.id)
    left = source.leave("two", {})
    (run.checkpoints / "step-00000007/rank-1").write_bytes(b"x" * 750)
    source.send(target.missing(left["attempt"], left["contents"])["wanted"], stream := io.BytesIO())
    stream.seek(0)
    with pytest.raises(BackendError, match="changed while it was sent"):
        target.receive(io.BufferedReader(stream))  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="has not arrived"):
        target.put(left["contents"], [])
    assert not (target.run.path / "run.yaml").exists()


def check_kills(folder: Path, kills: int, checkpoint_bytes: int, seed: int) -> None:
    """Kill the process that copies at random moments, and compare what arrives in the end."""
    run = ended_run(folder / "there", checkpoint_bytes)
    (folder / "clusters.yaml").write_text(
        yaml.safe_dump({name: {"backend": "local", "runs": str(folder / at)} for name, at in (("one", "there"), ("two", "here"))})
    )
    environment = {**os.environ, "ROPEWALK_CLUSTERS": str(folder / "clusters.yaml"), STATE_VARIABLE: str(folder / "state")}
    left = Place(folder / "there", run.id).leave("two", {})
    target, drawn = Place(folder / "here", run.id), random.Random(seed)

    def arrived() -> int:
        return sum(
            path.stat().st_size for path in (folder / "here" / ARRIVING_FOLDER / run.id).glob("[0-9a-f]*") if path.is_file()
        )

    command = [sys.executable, "-c", COPY, run.id]
    for kill in range(kills + 1):
        wanted = target.missing(left["attempt"], left["contents"])["wanted"]
        (folder / "wanted.json").write_text(json.dumps(wanted))
        with (folder / "wanted.json").open() as stdin, (folder / "errors").open("w") as errors:
            process = subprocess.Popen(command, env=environment, stdin=stdin, stderr=errors)
        if kill < kills:
            goes_on = partial(lambda before, client: arrived() > before or client.poll() is not None, arrived(), process)
            until(goes_on, Patience.START)
            time.sleep(drawn.uniform(0, 0.02))  # a random moment of the copy
            process.kill()
        process.wait()
        assert kill < kills or process.returncode == 0, (folder / "errors").read_text()
        until(lambda: not receivers(run.id), Patience.SIGNAL)
    copied = int((folder / "state/ropewalk/moves" / run.id).read_text())
    assert checkpoint_bytes < copied < 1.05 * checkpoint_bytes, f"{copied / checkpoint_bytes:.3f}"
    target.put(left["contents"], [])
    assert same_files(run, target.run)


def receivers(run: str) -> list[str]:
    done = subprocess.run(["pgrep", "-f", f"cluster-step [a-z]+ {run}"], capture_output=True, text=True, check=False)
    return done.stdout.split()


@pytest.mark.soak("7 seconds of CPU time; make test cuts copies in test_a_copy_that_is_cut_anywhere_goes_on_there")
def test_a_client_that_is_killed_twice_copies_hardly_anything_again(tmp_path: Path) -> None:
    check_kills(tmp_path, 2, 64 << 20, 1)


@pytest.mark.soak("20 kills; make test cuts copies in test_a_copy_that_is_cut_anywhere_goes_on_there")
def test_a_client_that_is_killed_twenty_times(tmp_path: Path) -> None:
    check_kills(tmp_path, 20, 256 << 20, 2)

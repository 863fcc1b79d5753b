"""The command `move` between clusters that are made up, whose steps run in this process."""

import io
import json
import shutil
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from ropewalk.cluster.errors import ConfigError, StaleAttemptError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import append_line, write_json
from ropewalk.jobs.cli import moving
from ropewalk.jobs.cli.move import Step, cluster_step
from ropewalk.jobs.results.metrics import MetricLog
from ropewalk.jobs.runs.move import source
from ropewalk.jobs.runs.program.checkpoints import commit
from ropewalk.jobs.runs.submit import records
from ropewalk.jobs.runs.submit.resume import resume
from ropewalk.jobs.runs.submit.snapshot import Checkout
from tests.fakes.token_files import write_dataset
from tests.jobs.shell import Shell, pretrain


class HereStep:
    """A step in this process; `killed_before` names one at which the client is killed."""

    killed_before: str | None = None
    taken: list[str]

    def __init__(self, run: str, cluster: str, step: str, request: Mapping[str, Any], *, streams_in: bool = False) -> None:
        if step == HereStep.killed_before:
            raise KeyboardInterrupt
        HereStep.taken.append(step)
        self._arguments = (Step(step), run, cluster)
        self._input, self._output = io.BytesIO(json.dumps(request).encode() + b"\n"), io.BytesIO()
        self._input.seek(0, io.SEEK_END)
        self._done, self._streams_in = False, streams_in

    def __enter__(self) -> "HereStep":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: bytes) -> None:
        assert self._streams_in
        self._input.write(data)

    def read(self) -> bytes:
        self._take()
        return self._output.read(1 << 16)

    def end(self) -> bytes:
        self._take()
        return self._output.read()

    def _take(self) -> None:
        if not self._done:
            self._done = True
            self._input.seek(0)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(self._input)))  # type: ignore[arg-type, type-var]
                patch.setattr("sys.stdout", text := io.TextIOWrapper(self._output, write_through=True))
                cluster_step(*self._arguments)
                text.flush()
                text.detach()
            self._output.seek(0)


@pytest.fixture
def shell(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell with two clusters, each with a runs' root and data of its own."""
    HereStep.killed_before, HereStep.taken = None, []
    monkeypatch.setattr(moving, "Step", HereStep)
    monkeypatch.setenv("XDG_STATE_HOME", str(shell.home / "state"))
    project = shell.home / "project"
    project.mkdir()
    (project / "train.py").write_text("print(1)\n")
    monkeypatch.setattr(records, "checkout", lambda: Checkout(project))  # of this program it takes longer
    clusters = yaml.safe_load((shell.home / "clusters.yaml").read_text())
    for name in ("east", "west"):
        write_dataset(shell.home / name / "corpus/tokens", [5000], [600])
        mounts = {"corpus": str(shell.home / name / "corpus")}
        runs = str(shell.home / name / "runs")
        clusters[name] = {**clusters["slow"], "saves": True, "runs": runs, "mounts": mounts}
    clusters["shut"] = {**clusters["west"], "refuse": "the queue is closed until Monday"}
    clusters["shipping"] = {**clusters["east"], "ships_code": True}
    clusters["bare"] = {**clusters["east"], "runs": str(shell.home / "bare/runs"), "mounts": {}}
    (shell.home / "clusters.yaml").write_text(yaml.safe_dump(clusters))
    return shell


@pytest.fixture
def run(shell: Shell) -> RunDir:
    """A run on `east` with two checkpoints."""
    name = shell("submit", "pretrain", "data=data://corpus/tokens", "steps=3", "seq_len=16", "--on", "east").strip()
    run = RunDir(shell.home / "east/runs" / name)
    for step in (1, 2):
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "rank-0.bin").write_bytes(bytes([step]) * 100_000)
        write_json(folder / "manifest.json", {"step": step})
    write_json(run.checkpoints / "latest.json", {"steps": [1, 2]})
    append_line(run.metrics, {"step": 2, "attempt": 1, "time": 1.0, "train/loss": 2.0})
    return run


def moved(shell: Shell, run: RunDir, cluster: str) -> RunDir:
    return RunDir(shell.home / cluster / "runs" / run.id)


def test_a_run_goes_on_where_it_has_moved_to_and_not_where_it_was(shell: Shell, run: RunDir) -> None:
    answer = json.loads(shell("move", run.id, "--on", "west", "resources.cpus=2", "--json"))
    there = moved(shell, run, "west")
    assert (answer["source"], answer["cluster"], answer["attempt"], answer["directory"]) == ("east", "west", 3, str(there.path))
    assert answer["checkpoint_bytes"] > 100_000
    assert there.attempts() == [1, 2, 3]
    assert there.record["cluster"] == "west"
    assert there.record["config"]["data"] == str(shell.home / "west/corpus/tokens")
    assert there.resources().cpus == 2
    assert there.code is not None
    assert (there.code / "train.py").exists()
    assert not there.cancel_requested
    assert [path.name for path in sorted(there.checkpoints.iterdir())] == ["latest.json", "step-00000002"]
    assert there.read_metrics() == run.read_metrics()
    assert [line["run"] for line in shell.asked("submit")] == [run.id, run.id]
    with pytest.raises(StaleAttemptError, match="attempt 1 was succeeded by 2"):
        Fence(run, 1, 1).check()
    assert "moved to west" in shell("show", str(run.path))
    assert "It has moved to west." in shell("why", str(run.path))
    with pytest.raises(ConfigError, match="has moved to west"):
        resume(RunDir(run.path))
    (row,) = json.loads(shell("ps", "--all", "--json"))
    assert (row["run"], row["cluster"], row["state"], row["attempts"]) == (run.id, "west", "RUNNING", 3)
    assert f"{run.id} is on west already" in shell.mistake("move", run.id, "--on", "west")

    assert "attempt 5 is submitted" in shell("move", run.id, "--on", "east")  # and back again, where most of it still lies
    back = RunDir(run.path)
    assert (back.attempts(), back.record["cluster"]) == ([1, 2, 3, 4, 5], "east")
    assert back.record["config"]["data"] == str(shell.home / "east/corpus/tokens")
    with pytest.raises(StaleAttemptError):
        Fence(there, 3, 1).check()
    with pytest.raises(StaleAttemptError):
        Fence(back, 1, 1).check()


def test_the_copy_of_a_project_without_a_repository_moves(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "checkout", lambda: Checkout(None))
    (shell.home / "train.py").write_text("print('submitted')\n")
    shell("submit", "command", "--on", "shipping", "--json", "--", "python3", "train.py")
    (run,) = RunDir.all(shell.home / "east/runs")
    (shell.home / "train.py").unlink()
    shell("move", run.id, "--on", "west")
    project = moved(shell, run, "west").record["project"]
    assert (shell.home / "west/runs/.code" / project["snapshot"] / "train.py").read_text() == "print('submitted')\n"


@pytest.mark.parametrize("step", [step.value for step in Step if step not in (Step.DESCRIBE, Step.STAY, Step.START_LOCKS)])
def test_a_move_that_was_interrupted_is_finished_by_the_same_command(shell: Shell, run: RunDir, step: str) -> None:
    HereStep.killed_before = step
    shell("move", run.id, "--on", "west", expect=130)
    assert "give the command again, or with --on east to let the run stay" in shell.err
    HereStep.killed_before = None
    shell("move", run.id, "--on", "west")
    assert moved(shell, run, "west").attempts() == [1, 2, 3]
    assert RunDir(run.path).attempts() == [1, 2]
    assert len(shell.asked("submit")) == 2
    assert len(shell.asked("cancel")) == 1


def test_the_original_of_a_run_has_where_it_is_to_move(shell: Shell, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(source, "write_to_original", lambda run, name: written.append(json.loads((run.path / name).read_text())))
    shell("move", run.id, "--on", "west")
    assert written[0]["moving_to"] == "west"


def test_a_process_of_the_old_place_that_comes_back_writes_nothing(shell: Shell, run: RunDir) -> None:
    shell("move", run.id, "--on", "west")
    orphan = JobContext(run=run, attempt=1, group=1)
    program = run.checkpoints / "step-9"
    program.mkdir()
    (program / "weights").write_bytes(b"9")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(StaleAttemptError):
        MetricLog(orphan).log(9, {"train/loss": 0.0})
    with pytest.raises(StaleAttemptError):
        commit(run.checkpoints, program, 9, orphan.fence.check)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_cluster_that_refuses_in_the_end_leaves_the_choice_to_the_user(shell: Shell, run: RunDir) -> None:
    shell("move", run.id, "--on", "shut", expect=1)
    assert "the queue is closed until Monday" in shell.err
    assert moved(shell, run, "west").attempts() == [1, 2]
    assert "has moved to shut" in shell.mistake("resume", str(run.path))
    assert "has not started on shut: it goes on on east" in shell("move", run.id, "--on", "east") + shell.err
    assert RunDir(run.path).attempts() == [1, 2, 3]
    assert RunDir(run.path).last_outcome() is None
    shell("move", run.id, "--on", "west")
    assert moved(shell, run, "west").attempts() == [1, 2, 3, 4, 5]


def test_what_cannot_move_is_not_stopped(shell: Shell, run: RunDir) -> None:
    refusals = {
        ("east",): "is on east already",
        ("bare",): "data://corpus/tokens: cluster 'bare' has no mount 'corpus' (it has none); add `mounts: {corpus: /path}`",
        ("nowhere",): "unknown cluster 'nowhere'",
        ("west", "data=elsewhere"): "the data of a run cannot change",
        ("west", "resources.nodes=x"): "resources.nodes",
    }
    for (cluster, *keys), message in refusals.items():
        assert message in shell.mistake("move", run.id, "--on", cluster, *keys)
    (shell.home / "west/corpus/tokens/manifest.json").write_text("{}")
    assert "is not what the run has read on its cluster" in shell.mistake("move", run.id, "--on", "west")
    shutil.rmtree(shell.home / "west/corpus/tokens")
    assert "no such file or directory; data are not copied with a run" in shell.mistake("move", run.id, "--on", "west")
    assert shell.asked("cancel") == []
    assert RunDir(run.path).attempts() == [1]


def test_runs_that_have_nothing_to_move(shell: Shell, run: RunDir) -> None:
    done = shell("submit", *pretrain("--on", "good")).strip()
    assert "does not run: SUCCEEDED" in shell.mistake("move", done, "--on", "west")
    failed = shell("submit", *pretrain("--on", "bad")).strip()
    assert f"`ropewalk resume {failed}`, and move it when it runs" in shell.mistake("move", failed, "--on", "west")
    child = RunDir.create("child", {**run.record, "parent": run.id}, run.path.parent)
    child.begin_attempt()
    assert f"belongs to pretrain {run.id}, which would start it again" in shell.mistake("move", child.id, "--on", "west")
    free = RunDir.create("free", {**run.record, "checkpoints": False}, run.path.parent)
    free.begin_attempt()
    assert "has no checkpoint of its own to move" in shell.mistake("move", free.id, "--on", "west")


def test_data_without_a_name_must_be_at_the_same_path(shell: Shell) -> None:
    name = shell("submit", *pretrain("--on", "east")).strip()
    run = RunDir(shell.home / "east/runs" / name)
    shell("move", name, "--on", "bare")
    assert RunDir(shell.home / "bare/runs" / name).record["config"]["data"] == run.record["config"]["data"]

"""Programs of the user's own, on the local backend: real ranks, real kills, real stops."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.backends.local.backend import LocalBackend
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.process.kill import processes_of, processes_with
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, read_lines
from ropewalk.cluster.spec import RunState
from ropewalk.jobs.orchestration.sweep.report.results import read_sweep
from ropewalk.jobs.registry import config_of, find_job
from ropewalk.jobs.runs.show.cancel import cancel_runs
from ropewalk.jobs.runs.show.diagnose import diagnose
from ropewalk.jobs.runs.show.status import states
from ropewalk.jobs.runs.submit.resume import scale
from ropewalk.jobs.runs.submit.submit import submit
from tests.jobs.orchestration.command.programs import ROOT, TRAINING, Start, ended, script, undisturbed
from tests.patience import Patience, until


def steps(run: RunDir) -> int:
    lines = run.read_metrics()
    return int(lines[-1]["step"]) if lines else 0


def final_words(run: RunDir) -> str:
    logs = [run.log_dir(number) / "rank-0.log" for number in run.attempts()]
    lines = [line for log in logs if log.exists() for line in log.read_text().splitlines() if line.startswith("final")]
    return lines[-1]


def program_of(run: RunDir, word: str = TRAINING) -> list[psutil.Process]:
    """The processes of the user's program itself, not those that carry it."""
    processes = []
    for process in processes_of(run.path):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if word in " ".join(process.cmdline()).split()[:3]:
                processes.append(process)
    return processes


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.soak("six imports of torch; make test has one node"))])
def test_a_training_program_is_bit_identical_after_a_kill_and_a_stop(start: Start, nodes: int) -> None:
    run = start([sys.executable, TRAINING, "--steps", "24", "--every", "4", "--pause", "0.1"], f"resources.nodes={nodes}")
    until(lambda: steps(run) >= 6)
    program_of(run)[0].kill()
    until(lambda: steps(run) >= 12)
    psutil.Process(int((read_json(run.path / "supervisor.json") or {})["pid"])).send_signal(signal.SIGUSR2)
    outcome = ended(run)
    assert run.attempts() == [1, 2]
    assert (outcome.state, outcome.cause) == (RunState.SUCCEEDED, "done")
    last_line, loss = undisturbed(24, nodes)
    assert final_words(run) == last_line
    assert run.results()["train/loss"] == pytest.approx(loss, rel=1e-9)
    step_numbers = [line["step"] for line in run.read_metrics()]
    assert step_numbers[-1] == 24
    stopped_at = max(e["step"] for e in run.read_events() if e["event"] == "checkpoint" and e["attempt"] == 1)
    assert step_numbers.count(stopped_at + 1) == 1, "an announced stop loses no step"


@pytest.mark.soak("two minutes; make test runs test_a_training_program_is_bit_identical_after_a_kill_and_a_stop")
@pytest.mark.parametrize("name", ["trainer", "fabric"])
def test_scripts_of_other_frameworks_lose_nothing_to_an_announced_stop(start: Start, name: str) -> None:
    if find_spec({"trainer": "accelerate", "fabric": "lightning"}[name]) is None:
        pytest.skip("needs its framework: pip install '.[dev]'")
    path = str(ROOT / f"jobs/configs/examples/{name}.py")
    peaceful = start([sys.executable, path], "resources.nodes=2")
    assert ended(peaceful).state is RunState.SUCCEEDED
    run = start([sys.executable, path], "resources.nodes=2")
    until(lambda: steps(run) >= 5)
    psutil.Process(int((read_json(run.path / "supervisor.json") or {})["pid"])).send_signal(signal.SIGUSR2)
    assert ended(run).state is RunState.SUCCEEDED
    assert len(run.attempts()) == 2
    assert final_words(run) == final_words(peaceful)
    step_numbers = [line["step"] for line in run.read_metrics() if "train/loss" in line]
    assert sorted(set(step_numbers)) == step_numbers, "no step twice"


def test_a_program_without_torch_waits_for_none() -> None:
    imports = "import sys, ropewalk.cluster.engines.ranks, ropewalk.jobs.orchestration.command.job"
    done = subprocess.run([sys.executable, "-c", f"{imports}; print('torch' in sys.modules)"], capture_output=True, check=True)
    assert done.stdout == b"False\n"


def test_a_program_that_knows_nothing_is_restarted_and_counted(start: Start, tmp_path: Path) -> None:
    text = """
import os, pathlib, sys, time
attempt = os.environ["ROPEWALK_ATTEMPT"]
kept = pathlib.Path(os.environ["ROPEWALK_CHECKPOINTS"]) / "starts"
with kept.open("a") as stream:
    stream.write(f"{attempt} {os.environ['WORLD_SIZE']} {os.environ['RANK']}\\n")
if attempt == "1":
    time.sleep(3600)
print("done at", attempt)
"""
    run = start(script(tmp_path, text))
    until((run.checkpoints / "starts").exists)
    psutil.Process(int((read_json(run.path / "supervisor.json") or {})["pid"])).send_signal(signal.SIGUSR2)
    assert ended(run).state is RunState.SUCCEEDED
    assert (run.checkpoints / "starts").read_text().splitlines() == ["1 1 0", "2 1 0"]
    first = run.outcome(1)
    assert first is not None
    assert first.state is RunState.PREEMPTED
    assert "stopped_without_word" in {event["event"] for event in run.read_events()}
    assert first.cause == "stopped: preempted; no checkpoint was confirmed in time"


def test_a_cancelled_program_that_did_not_say_so_has_not_saved(start: Start) -> None:
    run = start(["sleep", "3600"], "launch=once")
    until(lambda: bool(program_of(run, "sleep")))
    assert len(list(cancel_runs([str(run.path)]))) == 1
    outcome = ended(run)
    assert (outcome.state, outcome.cause) == (RunState.CANCELLED, "cancelled before a new checkpoint was saved")


@pytest.mark.parametrize(("code", "attempts", "state"), [(42, 1, RunState.FAILED), (7, 1, RunState.FAILED)])
def test_exit_codes(start: Start, tmp_path: Path, code: int, attempts: int, state: RunState) -> None:
    text = f"import sys\nprint('ValueError: too small')\nsys.exit({code})"
    run = start(script(tmp_path, text), "launch=once", "retries.bugs=0")
    outcome = ended(run)
    assert (outcome.state, len(run.attempts())) == (state, attempts)
    assert "ValueError: too small" in outcome.cause


def test_a_bug_of_the_program_is_told_in_its_own_words(start: Start, tmp_path: Path) -> None:
    run = start(script(tmp_path, "import os\nraise KeyError('learning_rate')"), "retries.bugs=1", "resources.ranks_per_node=2")
    outcome = ended(run)
    assert outcome.state is RunState.FAILED
    assert "KeyError: 'learning_rate'" in outcome.cause
    evidence = diagnose(run, states([run])[run.id]).evidence
    assert "raise KeyError('learning_rate')" in evidence, "the line of the program, not of what watches it"


def test_one_process_a_node_knows_all_nodes(start: Start, tmp_path: Path) -> None:
    text = "import os\nprint('nodes', os.environ['ROPEWALK_NODES'], os.environ['ROPEWALK_NODE_RANK'], flush=True)"
    run = start(script(tmp_path, text), "launch=nodes", "resources.nodes=2")
    assert ended(run).state is RunState.SUCCEEDED
    messages = [(run.log_dir(1) / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert [text.split() for text in messages] == [["nodes", "127.0.1.1,127.0.1.2", str(rank)] for rank in range(2)]


def test_the_stop_is_told_by_the_signal_and_the_file_that_the_program_wishes(start: Start, tmp_path: Path) -> None:
    text = """
import os, pathlib, signal, sys, time
kept = pathlib.Path(os.environ["ROPEWALK_CHECKPOINTS"]) / "said"
def leave(number, frame):
    with kept.open("a") as stream:
        stream.write(f"{signal.Signals(number).name} {os.path.exists(os.environ['ROPEWALK_STOP_FLAG'])}\\n")
    sys.exit(0)
signal.signal(signal.SIGUSR1, leave)
if kept.exists():
    sys.exit(0)
(kept.parent / "ready").touch()
while True:
    time.sleep(0.1)
"""
    run = start(script(tmp_path, text), "launch=once", "stop_signal=USR1")
    until((run.checkpoints / "ready").exists)
    psutil.Process(int((read_json(run.path / "supervisor.json") or {})["pid"])).send_signal(signal.SIGUSR2)
    assert ended(run).state is RunState.SUCCEEDED
    assert (run.checkpoints / "said").read_text() == "SIGUSR1 True\n"
    assert len(run.attempts()) == 2


def test_what_a_killed_ranks_program_has_started_does_not_outlive_the_restart(start: Start, tmp_path: Path) -> None:
    text = """
import os, pathlib, subprocess, sys, time
kept = pathlib.Path(os.environ["ROPEWALK_CHECKPOINTS"])
group = os.environ["ROPEWALK_GROUP"]
if group == "1":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)  # a launcher of its own
    (kept / "ready").touch()
    time.sleep(3600)
print("group", group)
"""
    line = f"{sys.executable} {script(tmp_path, text)[1]} | cat"
    run = start(["bash", "-c", line])
    until((run.checkpoints / "ready").exists)
    before = processes_with({"ROPEWALK_RUN": str(run.path), "ROPEWALK_GROUP": "1"})
    assert len(before) == 4, "bash, the program, cat, and what the program has started"
    parent = next(process for process in before if process.cmdline()[:2] == ["bash", "-c"]).parent()
    assert parent is not None
    parent.kill()
    assert ended(run).state is RunState.SUCCEEDED
    assert len(run.attempts()) == 1
    assert not [process for process in before if process.is_running()]


@pytest.mark.soak("four groups after each other; make test runs test_an_elastic_run_shrinks_and_grows_again")
def test_an_elastic_program_goes_on_with_the_nodes_that_there_are(start: Start, tmp_path: Path) -> None:
    text = """
import json, os, sys, time
import ropewalk
world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
latest = ropewalk.latest_checkpoint()
first = json.loads(latest.read_text())["step"] if latest else 0
for step in range(first + 1, 100_000):
    time.sleep(0.05)
    ropewalk.log({"world": world}, step=step)
    if rank == 0:
        path = ropewalk.checkpoint_dir() / f"step-{step}.json"
        path.write_text(json.dumps({"step": step}))
        ropewalk.commit_checkpoint(path, keep=2)
    if ropewalk.stop_requested():
        sys.exit(85)
"""
    run = start(script(tmp_path, text), "resources.nodes=1..3")

    def world() -> int:
        return int((run.read_metrics() or [{"world": 0}])[-1]["world"])

    for size, disturb in ((3, True), (2, False), (3, False)):
        until(lambda size=size: world() == size, Patience.RUN)
        if disturb:
            os.killpg(read_lines(run.attempt_dir(1) / "agents.jsonl")[-1]["pid"], signal.SIGKILL)
    scale(run, 1)
    until(lambda: world() == 1, Patience.RUN)
    LocalBackend(Profile(name="local", backend="local")).cancel(run)
    assert ended(run).state is RunState.CANCELLED
    assert run.attempts() == [1]
    steps = [int(line["step"]) for line in run.read_metrics()]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1)), "no step is left out"
    assert len(steps) - len(set(steps)) <= 2, "only a node that dies costs the steps since the last checkpoint"


def test_what_is_logged_is_written_behind_the_step_and_before_the_end(start: Start, tmp_path: Path) -> None:
    text = """
import os, sys, time
import ropewalk
times, cpu = [], []
for step in range(1, 1001):
    began, used = time.perf_counter(), time.thread_time()
    ropewalk.log({"loss": 1 / step}, step=step)
    times.append(time.perf_counter() - began)
    cpu.append(time.thread_time() - used)
if os.fork() == 0:
    ropewalk.log({"of a fork": 1.0}, step=1001)
    sys.exit(0)
os.wait()
print("milliseconds", 1000 * sorted(times)[500], 1000 * sorted(cpu)[990])
raise SystemExit(3)
"""
    run = start(script(tmp_path, text), "launch=once", "retries.bugs=0")
    assert "exit code 3" in ended(run).cause
    assert sorted(line["step"] for line in run.read_metrics()) == list(range(1, 1002)), "also at an end that is none"
    arguments = (run.log_dir(1) / "rank-0.log").read_text().split("milliseconds")[1].split()
    # the longest ones of a busy machine are those in which another process had the core
    assert all(float(word) < 1.0 for word in arguments[:2]), arguments[:2]


def test_metrics_are_read_from_the_output(start: Start, tmp_path: Path) -> None:
    text = "for step in range(1, 4):\n    print(f'step {step} loss={1 / step:.3f} speed=1,024', flush=True)"
    run = start(
        script(tmp_path, text),
        "launch=once",
        "metrics={train/loss: 'loss=(\\S+)', speed: 'speed=(\\S+)'}",
        "step_pattern='step (\\d+)'",
    )
    assert ended(run).state is RunState.SUCCEEDED
    lines = run.read_metrics()
    assert [(line["step"], line["train/loss"], line["speed"]) for line in lines] == [
        (1, 1.0, 1024),
        (2, 0.5, 1024),
        (3, 0.333, 1024),
    ]
    assert run.results()["train/loss"] == 0.333
    assert "step 3 loss=0.333" in (run.log_dir(1) / "rank-0.log").read_text()


def test_a_line_that_is_no_metric_holds_no_program_up(start: Start, tmp_path: Path) -> None:
    """The program writes more than a pipe holds behind it."""
    text = "print('step inf loss: 2'); print('step 3 loss: 1'); print('x' * 300_000)"
    metrics = "metrics={loss: 'loss=(\\S+)|loss: (\\S+)', sum: 'loss: (\\S+)'}"
    run = start(script(tmp_path, text), "launch=once", metrics, "step_pattern='step (\\S+)'")
    assert ended(run).state is RunState.SUCCEEDED
    assert [(line["step"], line["sum"]) for line in run.read_metrics()] == [(0, 2.0), (3, 1.0)]


def test_a_program_that_is_not_there(start: Start) -> None:
    outcome = ended(start(["no-such-program", "x"], "launch=once"))
    assert outcome.state is RunState.FAILED
    assert "there is no program 'no-such-program' on this node" in outcome.cause


@pytest.mark.soak("a sweep of its own; test_values_stand_for_their_names fills the values, sweeps have their own tests")
def test_any_program_is_swept(tmp_path: Path, start: Start) -> None:
    lines = ["import sys", "lr = float(sys.argv[1])", "for step in (1, 2, 3):", "    print(f'loss={(lr - 0.3) ** 2 + 1 / step}')"]
    program = script(tmp_path, "\n".join(lines))
    base = {"command": [*program, "{lr}"], "directory": str(tmp_path), "launch": "once", "metrics": {"loss": r"loss=(\S+)"}}
    keys = {"job": "command", "base": base, "space": {"values.lr": {"grid": [0.1, 0.3, 0.9]}}, "metric": "loss", "search": "grid"}
    sweep = submit("sweep", load_config(config_of(find_job("sweep")), keys).resolved())
    assert ended(sweep).state is RunState.SUCCEEDED
    best = read_sweep(sweep).best
    assert best is not None
    assert best.parameters == {"values.lr": 0.3}

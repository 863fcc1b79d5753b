"""Job scripts compared with golden files, letter by letter. ROPEWALK_REWRITE_GOLDEN=1 pytest ... writes them anew."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.batch.container import wrap
from ropewalk.slurm.batch.script import fill, render_extra_node, render_job
from ropewalk.slurm.profile import SlurmProfile
from tests.patience import HANG_SECONDS, Patience, until

GOLDEN = Path(__file__).parents[1] / "golden/slurm"
REWRITE = "ROPEWALK_REWRITE_GOLDEN"
AGENT = ["python", "-m", "ropewalk.cluster.agent", "/scratch/runs/pretrain-1", "--attempt", "1", "--node", "0"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A script to be rendered."""

    resources: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 1
    code: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1


BIG = {
    "partition": "gpu,big",
    "account": "lab",
    "qos": "high",
    "constraint": "a100&ib",
    "exclude": "n[7-9],n13",
    "exclusive": True,
    "setup": ["module load cuda/12.4", 'source "$HOME/env/bin/activate"'],
    "environment": {"NCCL_DEBUG": "WARN", "GREETING": "it's $HOME"},
    "interface": "ib0",
}
CASES = {
    "plain": Case(),
    "gpus": Case(resources={"nodes": 8, "gpus": 4, "ranks_per_node": 4, "cpus": 32, "time_limit_minutes": 1440}, profile=BIG),
    "elastic": Case(resources={"nodes": "1..4", "cpus": 2, "memory_gib": 1.5, "time_limit_minutes": 90.5, "grace_seconds": 30}),
    "spare": Case(resources={"nodes": 2, "spare_nodes": 1}),
    "array": Case(resources={"cpus": 1}, profile={"partition": "short"}, runs=3),
    "code": Case(code={"snapshot": "3f2a", "folder": "src", "is_program": True}),
    "project": Case(code={"snapshot": "3f2a", "folder": "my work"}),
    "options": Case(
        profile={
            "gres": "nvme:1",
            "reservation": "ours",
            "requeue_at_once": False,
            "sbatch": {"mail-type": "END,FAIL", "hint": "nomultithread", "nice": 100, "contiguous": True, "overcommit": False},
        },
        attempt=3,
    ),
}
IMAGES: dict[str, dict[str, Any]] = {
    "apptainer": {"image": "/images/ropewalk.sif", "mounts": ["/data"]},
    "pyxis": {"image": "nvcr.io#ropewalk:1", "mounts": ["/data:/data:ro"]},
    "charliecloud": {"image": "/images/ropewalk", "options": ["--write-fake"]},
    "podman": {"image": "ropewalk:1", "options": ["--device=nvidia.com/gpu=all"]},
}


def run_of(case: Case) -> RunDir:
    run = RunDir("/scratch/runs/pretrain-1")
    run.__dict__["record"] = {"run": run.id, "resources": dict(case.resources), "code": dict(case.code)}
    return run


def render(case: Case) -> str:
    resources, profile = Resources.model_validate(case.resources), SlurmProfile.model_validate(case.profile)
    return render_job(run_of(case), resources, profile, case.attempt, case.runs)


def write_programs(folder: Path, programs: Mapping[str, str]) -> None:
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)


def compare(name: str, text: str) -> None:
    """With the golden file; this machine's Python is PYTHON there."""
    path, plain = GOLDEN / name, text.replace(shlex.quote(sys.executable), "PYTHON")
    if os.environ.get(REWRITE):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(plain)
    assert path.exists(), f"{path}: not there; {REWRITE}=1 writes it"
    assert plain == path.read_text(), f"{path}; if that is meant, {REWRITE}=1 writes it anew"


@pytest.mark.parametrize("name", CASES)
def test_a_job_script(name: str) -> None:
    compare(f"{name}.sbatch", render(CASES[name]))


def test_the_script_of_an_extra_node() -> None:
    case = CASES["gpus"]
    resources = Resources.model_validate({**case.resources, "nodes": "2..8"})
    text = render_extra_node(run_of(case), resources, SlurmProfile.model_validate(case.profile), "123", 40)
    compare("companion.sbatch", text)


@pytest.mark.parametrize("runtime", IMAGES)
def test_what_srun_starts(runtime: str) -> None:
    profile = SlurmProfile.model_validate({"container": {"runtime": runtime, **IMAGES[runtime]}})
    command, options = wrap(AGENT, profile, run_of(CASES["gpus"]))
    compare(f"{runtime}.txt", "".join(f"{word}\n" for word in ["srun", *options, *command]))


def test_no_golden_file_is_left_over() -> None:
    expected = {*(f"{name}.sbatch" for name in CASES), "companion.sbatch", *(f"{runtime}.txt" for runtime in IMAGES)}
    assert {path.name for path in GOLDEN.iterdir()} == expected


def test_the_scripts_are_bash() -> None:
    for path in sorted(GOLDEN.glob("*.sbatch")):
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    users = "--exclude=SC1091,SC2016"  # the user's own lines: a file that is not here, a dollar that is meant
    scripts = sorted(GOLDEN.glob("*.sbatch"))
    done = subprocess.run(["shellcheck", users, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_script_names_no_path_of_the_run() -> None:
    for case in CASES.values():
        assert "/scratch/runs" not in render(case)


def test_an_image_changes_nothing_in_the_job_script() -> None:
    boxed = {**BIG, "container": {"runtime": "podman", "image": "ropewalk:1"}}
    assert render(Case(resources=CASES["gpus"].resources, profile=boxed)) == render(CASES["gpus"])


def test_a_limit_shorter_than_the_notice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"time_limit_minutes: 2 is no longer than resources\.grace_seconds"):
        render(Case(resources={"time_limit_minutes": 2, "grace_seconds": 120}))


def test_a_users_line_is_taken_as_it_is() -> None:
    """Names in the user's line that look like ours are not replaced."""
    line = "echo @controller@ @skip_requeue_delay@ me@here"
    assert line in render(Case(profile={"setup": [line]})).splitlines()


@pytest.mark.parametrize(
    ("states", "asks"), [("COMPLETING PENDING", True), ("RUNNING", False), ("COMPLETED", False), ("CANCELLED", False)]
)
def test_the_small_job_of_a_requeued_one_leaves_once_nothing_is_to_be_done(tmp_path: Path, states: str, asks: bool) -> None:
    """A job that ended before it was looked at is neither pending nor running ever again."""
    (tmp_path / "states").write_text("".join(f"7 {state}\n" for state in states.split()))
    programs = {
        # another element of its array, and a state of its own; then nothing
        "squeue": f"echo 6 COMPLETED; head -n 1 {tmp_path}/states; sed -i 1d {tmp_path}/states; echo >> {tmp_path}/looks",
        "scontrol": f'echo "$@" > {tmp_path}/asked',
    }
    write_programs(tmp_path, programs)
    script = fill("skip_requeue_delay.sh", options="").partition("<<'SKIP_DELAY'\n")[2].partition("SKIP_DELAY")[0]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NAME": "ropewalk-hurry-7"}
    subprocess.run(["bash"], input=script, text=True, env=environment, check=False, timeout=HANG_SECONDS)
    assert (tmp_path / "asked").exists() == asks
    assert len((tmp_path / "looks").read_text()) == len(states.split())


COORDINATOR = """#!{python}
import pathlib, signal, sys, time
pathlib.Path("begun").touch()
time.sleep(1)  # it does not listen yet
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(0))
time.sleep(600)
"""


def test_a_stop_waits_until_the_coordinator_listens(tmp_path: Path) -> None:
    """Else the signal kills it, which looks like a lost node, and a cancelled run is requeued."""
    write_programs(tmp_path, {"scontrol": "touch requeued"})
    (tmp_path / "coordinator").write_text(COORDINATOR.format(python=sys.executable))
    (tmp_path / "coordinator").chmod(0o755)
    script = render(CASES["plain"]).replace(shlex.quote(sys.executable), f"{tmp_path}/coordinator")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", "-c", script], env=environment, cwd=tmp_path, start_new_session=True)
    until((tmp_path / "begun").exists, Patience.SIGNAL)
    os.killpg(job.pid, signal.SIGTERM)  # as scancel, which signals every process of the script
    assert job.wait(HANG_SECONDS) == 0
    assert not (tmp_path / "requeued").exists()


def test_a_name_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError, match="patience"):
        fill("watchdog.sh", skip_requeue_delay="")


def test_a_folder_s_name_is_no_command(tmp_path: Path) -> None:
    """Not even where the copy of the code is missing, and the script says so."""
    text = render(Case(code={"snapshot": "3f2a", "folder": '$(touch owned)`touch owned`"; touch owned; "'}))
    before, _, _ = text.partition("set -u")
    done = subprocess.run(["bash"], input=before, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the copy of the code is gone" in done.stderr
    assert list(tmp_path.iterdir()) == []

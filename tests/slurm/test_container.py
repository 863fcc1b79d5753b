"""Agents in containers: what srun starts, per runtime; and for real, on charliecloud, with the job script outside."""

import shutil
import subprocess
import sys
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.backends.base import Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from ropewalk.slurm.backend import SlurmBackend
from ropewalk.slurm.batch.container import wrap
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.profile import SlurmProfile
from tests.fakes.contained import MARK
from tests.patience import Patience, until
from tests.slurm.conftest import ROOT

AGENT = ["python", "-m", "ropewalk.cluster.agent", "/scratch/runs/r1"]
BOUND = "/scratch/runs:/scratch/runs"


def wrapped(gpus: int = 0, **container: Any) -> tuple[list[str], list[str]]:
    run = RunDir("/scratch/runs/r1")
    run.__dict__["record"] = {"resources": {"gpus": gpus}}
    return wrap(AGENT, SlurmProfile.model_validate({"container": container}), run)


def test_without_an_image_nothing_is_wrapped() -> None:
    assert wrap(AGENT, SlurmProfile(), RunDir("/scratch/runs/r1")) == (AGENT, [])


@pytest.mark.parametrize(
    ("container", "command"),
    [
        (
            {"runtime": "apptainer", "image": "/images/r.sif", "mounts": ["/data", "/a:/b:ro"]},
            f"apptainer exec --bind=/data:/data --bind=/a:/b:ro --bind={BOUND} --pwd=/scratch/runs/r1 /images/r.sif",
        ),
        (
            {"runtime": "singularity", "image": "docker://r:1", "options": ["--rocm", "--cleanenv"], "gpus": 8},
            f"singularity exec --bind={BOUND} --pwd=/scratch/runs/r1 --rocm --cleanenv docker://r:1",
        ),
        (
            {"runtime": "apptainer", "image": "r.sif", "mounts": ["/scratch/runs"], "gpus": 8},
            f"apptainer exec --bind={BOUND} --pwd=/scratch/runs/r1 --nv r.sif",
        ),
        (
            {"runtime": "charliecloud", "image": "/images/r", "options": ["--write-fake"]},
            f"ch-run --bind={BOUND} --cd=/scratch/runs/r1 --write-fake /images/r --",
        ),
        (
            {"runtime": "podman", "image": "r:1", "options": ["--device=nvidia.com/gpu=all"]},
            "podman run --rm --network=host --ipc=host --env-host --workdir=/scratch/runs/r1"
            f" --volume={BOUND} --device=nvidia.com/gpu=all r:1",
        ),
    ],
    ids=["apptainer", "singularity", "gpus", "charliecloud", "podman"],
)
def test_the_command_of_an_agent(container: dict[str, Any], command: str) -> None:
    assert wrapped(**container) == ([*command.split(), *AGENT], [])


def test_pyxis_is_asked_by_options_of_srun() -> None:
    command, options = wrapped(runtime="pyxis", image="nvcr.io#r:1", mounts=["/data"], options=["--container-writable"])
    assert command == AGENT
    assert options == [
        "--container-image=nvcr.io#r:1",
        f"--container-mounts=/data:/data,{BOUND}",
        "--container-workdir=/scratch/runs/r1",
        "--no-container-mount-home",
        "--container-writable",
    ]


# --- for real


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as charliecloud wants it: empty but for a mark, and places to mount this machine's Python at."""
    if shutil.which("ch-run") is None:
        pytest.skip("needs charliecloud: apt-get install charliecloud")
    monkeypatch.setenv("USER", getuser())  # ch-run insists on it
    root = tmp_path / "image"
    # an image is not written to, so that whatever is mounted needs a place in it
    for location in ("etc", "dev", "proc", "sys", "tmp", *(mount.lstrip("/") for mount in mounts())):
        (root / location).mkdir(parents=True, exist_ok=True)
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (root / "etc" / name).touch()
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / str(MARK).lstrip("/")).touch()
    tried = subprocess.run(["ch-run", "--bind=/usr", str(root), "--", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this machine lets nobody make a container: {tried.stderr.strip()}")
    return root


def mounts() -> list[str]:
    """Directories of Python, its packages and this code."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return list(dict.fromkeys(["/usr", str(ROOT), sys.prefix, sys.base_prefix, *packages]))


@pytest.mark.soak(
    "an image and two attempts; test_the_command_of_an_agent has the commands of every runtime, and test_stops.py real stops"
)
@pytest.mark.slow
def test_ranks_run_in_the_image_and_the_job_script_outside(
    slurm_lab: Lab, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TMPDIR")  # ch-run makes it the image's /tmp, where this test's runs would not be
    options = {
        "container": {"runtime": "charliecloud", "image": str(image), "mounts": mounts()},
        "python": sys.executable,
        "setup": [f"[ -e {MARK} ] || echo the job script is outside"],
    }
    backend = SlurmBackend(Profile(name="boxed", backend="slurm", options=options))
    resources = Resources.model_validate({"nodes": 1, "cpus": 2})
    record = {
        "job": "toy",
        "entry": "tests.fakes.contained:tick",
        "engine": "process",
        "preload": [],
        "sidecars": [],
        "config": {"steps": 15},
        "resources": resources.model_dump(mode="json"),
    }
    run = RunDir.create("toy", record, tmp_path / "runs")
    job = backend.submit(run, resources).partition(":")[2]
    until(lambda: max((line["step"] for line in run.read_metrics()), default=0) >= 3, Patience.STEP)
    slurm_lab.command("scancel", "--batch", "--signal=USR2", job)  # as before a time limit
    outcome = until(lambda: (last := run.last_outcome()) and last.state.final and last, Patience.RUN)
    assert outcome.state is RunState.SUCCEEDED, outcome
    assert [line["step"] for line in run.read_metrics()] == list(range(1, 16))
    assert run.attempts() == [1, 2]
    placed = [event for event in run.read_events() if event["event"] == "placed"]
    assert [(event["attempt"], event["rank"]) for event in placed] == [(1, 0), (2, 0)]
    assert all(event["image"] and event["cwd"] == str(run.path) for event in placed)
    assert (run.log_dir(1) / "batch.log").read_text().count("the job script is outside") == 2

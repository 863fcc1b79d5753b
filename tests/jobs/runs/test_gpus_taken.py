"""A job on a model that sets no `gpus`: what it takes on this machine, and the choice that a cluster with GPUs demands."""

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.backends.local.held_gpus import HeldGpus
from ropewalk.cluster.config import Resources
from ropewalk.cluster.run.directory import RunDir
from tests.fakes.gpus import machine_with
from tests.jobs.shell import Shell, pretrain

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Let this machine have GPUs, and a torch that can use them; runs are submitted and never start."""

    def make(gpus: int | None, torch: str = "2.13.0", **variables: str) -> None:
        machine_with(gpus, monkeypatch, **variables)
        monkeypatch.setattr("ropewalk.cluster.gpus.metadata.version", lambda name: torch if name == "torch" else version(name))

    # locks of GPUs that other runs of this machine hold are not the test's
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("ropewalk.cluster.backends.local.backend.start_detached", lambda *_: os.getpid())
    return make


def newest(shell: Shell) -> RunDir:
    return RunDir.all(shell.home / "runs")[-1]


def resources(shell: Shell) -> Resources:
    return newest(shell).resources()


@pytest.mark.parametrize(
    ("variables", "keys", "devices"),
    [
        ({"FAKE_GPUS": "2"}, [], "0, 1"),
        ({"FAKE_GPUS": "4", "FAKE_GPUS_IN_USE": "0,2"}, [], "1, 3"),
        ({"FAKE_GPUS": "8", "CUDA_VISIBLE_DEVICES": "5,3"}, [], "5, 3"),
        ({"FAKE_GPUS": "4"}, ["resources.ranks_per_node=2"], "0, 1, 2, 3"),
        ({"FAKE_GPUS": "4"}, ["resources.nodes=2"], "0, 1, 2, 3"),
    ],
)
def test_a_training_takes_the_gpus_that_no_process_occupies_and_says_which(
    shell: Shell, machine: Machine, variables: dict[str, str], keys: list[str], devices: str
) -> None:
    machine(None, **variables)
    run = shell("submit", *pretrain(*keys)).strip()
    assert resources(shell).gpus == 2
    assert RunDir(shell.home / "runs" / run).record["config"]["resources"]["gpus"] == 2
    notice = f"resources.gpus=2, of the GPUs that no process occupies ({devices}); resources.gpus=0 to compute on the CPU"
    assert f"resources: {notice}\n" in shell.err
    assert shell("submit", *pretrain(*keys, "--script")).splitlines()[-1] == f"# {notice}"


def test_gpus_of_another_run_are_not_taken(shell: Shell, machine: Machine) -> None:
    machine(3)
    other = HeldGpus()
    assert other.take(1) == ["0"]
    shell("submit", *pretrain())
    assert resources(shell).gpus == 2
    other.release()
    shell("submit", *pretrain())
    assert resources(shell).gpus == 3, "and looking at them has held none"


@pytest.mark.parametrize(
    ("variables", "keys", "torch"),
    [
        ({}, [], "2.13.0"),
        ({"FAKE_GPUS": "4"}, ["resources.gpus=0"], "2.13.0"),
        ({"FAKE_GPUS": "4", "CUDA_VISIBLE_DEVICES": ""}, [], "2.13.0"),
        ({"FAKE_GPUS": "4"}, [], "2.13.0+cpu"),
    ],
)
def test_a_training_computes_on_the_cpu_without_gpus_or_by_choice(
    shell: Shell, machine: Machine, variables: dict[str, str], keys: list[str], torch: str
) -> None:
    machine(None, torch, **variables)
    shell("submit", *pretrain(*keys))
    assert resources(shell).gpus == 0
    assert ("torch 2.13.0+cpu is built without CUDA" in shell.err) == torch.endswith("+cpu")


@pytest.mark.parametrize(
    ("in_use", "keys", "choices"),
    [
        (["0", "1"], [], "set resources.gpus=2 to compute on GPUs, or resources.gpus=0 to"),
        (
            [],
            ["resources.ranks_per_node=4"],
            "set resources.gpus=1 resources.ranks_per_node=1 to compute on GPUs, or resources.g",
        ),
        ([], ["resources.nodes=2"], "set resources.nodes=1 resources.gpus=1 to compute on GPUs, or resources.gpus=0 to"),
    ],
)
def test_too_few_unoccupied_gpus_are_a_choice_of_the_user(
    shell: Shell, machine: Machine, in_use: list[str], keys: list[str], choices: str
) -> None:
    machine(len(in_use) or 1, FAKE_GPUS_IN_USE=",".join(in_use))
    assert choices in shell.mistake("submit", *pretrain(*keys))
    assert not RunDir.all(shell.home / "runs"), "nothing was begun"
    line = choices.removeprefix("set ").partition(" to ")[0]
    shell("submit", *pretrain(*keys, *line.split()))
    assert resources(shell).gpus == (len(in_use) or 1)


def test_a_training_that_waits_for_a_run_takes_what_that_run_occupies(shell: Shell, machine: Machine) -> None:
    machine(2, FAKE_GPUS_IN_USE="0,1")
    first = shell("submit", *pretrain("resources.gpus=2")).strip()
    shell("submit", *pretrain("--after", first))
    assert resources(shell).gpus == 2


SWEEP = (
    "sweep",
    "job=pretrain",
    "base={data: data, steps: 10, seq_len: 16}",
    "metric=train/loss",
    "space={optim.lr: {choice: [1e-3]}}",
)
PIPELINE = "steps={train: {job: pretrain, config: train.yaml}, look: {job: command, config: {command: [echo]}, needs: [train]}}"


def write_step(shell: Shell) -> None:
    (shell.home / "train.yaml").write_text(yaml.safe_dump({"data": str(shell.home / "data"), "steps": 3, "seq_len": 16}))


def test_trials_take_a_gpu_for_each_rank_and_steps_all(shell: Shell, machine: Machine) -> None:
    machine(4)
    shell("submit", *SWEEP)
    assert (newest(shell).record["config"]["base"]["resources"], resources(shell).gpus) == ({"gpus": 1}, 0)
    assert "resources: base.resources.gpus=1, of the GPUs" in shell.err
    write_step(shell)
    shell("submit", "pipeline", PIPELINE)
    gpus = {run.record["job"]: run.record["resources"]["gpus"] for run in RunDir.all(shell.home / "runs")}
    assert gpus == {"sweep": 0, "pipeline": 0, "pretrain": 4, "command": 0}


def clusters_with(shell: Shell, gpus: int | str) -> None:
    path = shell.home / "clusters.yaml"
    path.write_text(yaml.safe_dump({name: {**keys, "gpus": gpus} for name, keys in yaml.safe_load(path.read_text()).items()}))


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (pretrain(), ("resources.gpus=8", "resources.gpus=0")),
        (pretrain("resources.ranks_per_node=2"), ("resources.gpus=2", "resources.gpus=0")),
        (pretrain("--each", "seed=1..3"), ("resources.gpus=8", "resources.gpus=0")),
        (("evaluate", "model=latest", "data=data"), ("resources.gpus=8", "resources.gpus=0")),
        (SWEEP, ("base.resources.gpus=1", "base.resources.gpus=0")),
        ((*SWEEP, "allocation=true"), ("resources.gpus=8 base.resources.gpus=1", "resources.gpus=0")),
        (("pipeline", PIPELINE), ("steps.train.config.resources.gpus=8", "steps.train.config.resources.gpus=0")),
    ],
)
def test_a_cluster_with_gpus_demands_a_choice_at_submission(
    shell: Shell, arguments: tuple[str, ...], choices: tuple[str, str]
) -> None:
    write_step(shell)
    clusters_with(shell, 8)
    for dry_run in ((), ("--dry-run",)):
        assert (
            f"not set, but nodes of partition gpu have 8 GPUs; set {choices[0]} to compute on GPUs, or {choices[1]} to compute on"
        ) in shell.mistake("submit", *arguments, "--on", "slow", *dry_run)
    assert shell.asked("submit") == []
    if arguments[0] != "evaluate":  # there is no model
        for choice in choices:
            shell("submit", *arguments, *choice.split(), "--on", "slow")


def test_a_sweep_in_an_allocation_with_gpus_says_what_a_trial_takes(shell: Shell) -> None:
    message = shell.mistake("submit", *SWEEP, "allocation=true", "resources.gpus=8", "--on", "slow")
    assert "set base.resources.gpus=1 to compute on them, or base.resources.gpus=0 to compute on the CPU" in message


def test_a_cluster_that_does_not_tell_gets_a_warning(shell: Shell) -> None:
    clusters_with(shell, "unknown")
    shell("submit", *pretrain("--on", "slow"))
    assert (
        "resources: resources.gpus: not set, so no GPU is requested, and it is unknown whether the cluster has any"
        " (nodes is forbidden); set resources.gpus=8 to compute on GPUs, or resources.gpus=0 to compute on the CPU\n"
    ) in shell.err
    shell("submit", *pretrain("--on", "slow", "resources.gpus=0"))
    assert shell.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("command", "command=[python, x.py]"),
        ("preprocess", "input=data/*.jsonl", "output=o", "tokenizer={train: 300}"),
        ("pipeline", "steps={look: {job: command, config: {command: [echo]}}}"),
    ],
)
def test_jobs_without_a_model_are_left_alone(shell: Shell, machine: Machine, arguments: tuple[str, ...]) -> None:
    (shell.home / "data/a.jsonl").write_text('{"text": "a"}\n')
    machine(4)
    clusters_with(shell, 8)
    shell("submit", *arguments)
    assert resources(shell).gpus == 0
    assert "GPU" not in shell.err
    shell("submit", *arguments, "--on", "slow")
    assert "GPU" not in shell.err


def test_replicas_and_compress_take_what_they_can_use(machine: Machine) -> None:
    from ropewalk.jobs.models.compress.config import CompressConfig
    from ropewalk.jobs.serving.serve.config import ServeConfig

    def unset(kind: Any, **keys: Any) -> list[tuple[int | None, tuple[str, ...]]]:
        return [(part.most, part.others) for part in kind.model_validate({"model": "m", **keys}).unset_gpus()]

    assert unset(CompressConfig, data="data", methods=[{"magnitude": {"sparsity": 0.5}}]) == [(1, ())]
    assert unset(ServeConfig, replicas="1..3") == [(3, ("gpus=1",))]
    assert unset(ServeConfig, engine="llamacpp") == []
    assert unset(ServeConfig, engine_command=["mine"]) == []
    assert unset(ServeConfig, gpus=0) == []

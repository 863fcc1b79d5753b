"""A profile file of the current directory starts programs only after its content was accepted."""

import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.cli.main import main

Ropewalk = Callable[..., str]

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./login.sh, interactiveMode: Never}}}]
"""
ROPEWALK = (sys.executable, "-m", "ropewalk.jobs.cli")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from elsewhere: a cluster whose kubeconfig runs a script of the folder, and an open run on it."""
    monkeypatch.delenv("ROPEWALK_CLUSTERS", raising=False)
    monkeypatch.delenv("ROPEWALK_RUNS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "clusters.yaml").write_text("team: {backend: k8s, kubeconfig: ./kubeconfig}\n")
    (folder / "kubeconfig").write_text(KUBECONFIG)
    script = folder / "login.sh"
    script.write_text(f"#!/bin/sh\ntouch {folder}/started\necho no login >&2\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    record = {"job": "pretrain", "cluster": "team", "config": {}, "resources": {"nodes": 1}, "engine": "ranks", "created": 1.0}
    run = RunDir.create("x", record, folder / "runs")
    run.begin_attempt(opened_by="submission", name="x-1", handle="k8s:d/x-1", resources={"nodes": 1})
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ropewalk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ropewalk:
    """Run the command in this process, without a terminal, and return all that it prints."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["ropewalk", *arguments])
        with pytest.raises(SystemExit):
            main()
        return " ".join("".join(capsys.readouterr()).split())

    return call


def at_terminal(answer: str, *arguments: str) -> str:
    """Run the command at a terminal that gives one answer, and return what the terminal shows."""
    leader, follower = pty.openpty()
    with os.fdopen(leader, "r+b", buffering=0) as terminal:
        with subprocess.Popen([*ROPEWALK, *arguments], stdin=follower, stdout=subprocess.DEVNULL, stderr=follower):
            os.close(follower)
            terminal.write(f"{answer}\n".encode())
        return os.read(leader, 100_000).decode()


def test_a_foreign_file_starts_nothing_until_it_is_trusted_and_again_after_each_change(
    checkout: Path, ropewalk: Ropewalk
) -> None:
    started = checkout / "started"
    shown = ropewalk("show", "latest")
    assert "clusters.yaml would start programs: team: kubeconfig ./kubeconfig (runs ./login.sh)" in shown
    assert "run: ropewalk trust clusters.yaml" in shown
    ropewalk("ps")
    assert not started.exists()

    assert "kubeconfig ./kubeconfig (runs ./login.sh)" in ropewalk("trust")
    assert "ropewalk trust" not in ropewalk("show", "latest")
    assert started.exists()

    for name in ("clusters.yaml", "kubeconfig", "login.sh"):
        started.unlink(missing_ok=True)
        text = (checkout / name).read_text()
        (checkout / name).write_text(
            text.replace("team: {", "team: {namespace: b, ").replace(":9", ":8").replace("touch", "touch -a")
        )
        shown = ropewalk("show", "latest")
        assert "run: ropewalk trust" in shown
        assert not started.exists()
        ropewalk("trust")

    (checkout / "kubeconfig").write_text(
        (checkout / "kubeconfig").read_text().replace("current-context: c", "current-context: d")
    )
    assert "ropewalk trust" not in ropewalk("show", "latest")


def test_the_question_is_asked_once_for_each_content(checkout: Path) -> None:
    assert "Trust this content? [y/N]" in at_terminal("n", "ps")
    assert not (checkout / "started").exists()
    assert at_terminal("y", "ps").count("Trust this content? [y/N]") == 1
    assert (checkout / "started").exists()
    assert "Trust" not in at_terminal("", "ps")


def test_files_named_by_the_user_need_no_trust(checkout: Path, ropewalk: Ropewalk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_CLUSTERS", "clusters.yaml")
    assert "ropewalk trust" not in ropewalk("show", "latest")
    monkeypatch.delenv("ROPEWALK_CLUSTERS")
    config = Path.home() / ".config/ropewalk"
    config.mkdir(parents=True)
    (checkout / "clusters.yaml").rename(config / "clusters.yaml")
    assert "ropewalk trust" not in ropewalk("show", "latest")


@pytest.mark.parametrize(
    ("profile", "asks"),
    [
        ("{backend: slurm, partition: gpu, account: lab, runs: runs}", False),
        ("{backend: local}", False),
        ("{backend: k8s, context: c, namespace: n, queue: q}", False),
        ("{backend: slurm, setup: [module load cuda]}", True),
        ("{backend: slurm, python: ./python}", True),
        ("{backend: slurm, environment: {LD_PRELOAD: ./x.so}}", True),
        ("{backend: slurm, container: {runtime: apptainer, image: ./x.sif}}", True),
        ("{backend: slurm, sbatch: {container: ./bundle}}", True),
        ("{backend: k8s, image: elsewhere/image}", True),
        ("{backend: k8s, pod: {spec: {}}}", True),
        ("{backend: of_someone, whatever: ./x}", True),
    ],
)
def test_only_keys_that_start_programs_need_trust(checkout: Path, ropewalk: Ropewalk, profile: str, asks: bool) -> None:
    (checkout / "clusters.yaml").write_text(f"team: {profile}\n")
    (checkout / "runs").rename(checkout / "other")
    assert ("starts no program" in ropewalk("trust")) == (not asks)


def test_control_characters_of_a_file_do_not_reach_the_terminal(checkout: Path, ropewalk: Ropewalk) -> None:
    (checkout / "clusters.yaml").write_text('team: {backend: slurm, setup: "a\\e[2K"}\n')
    assert "\x1b" not in ropewalk("trust")

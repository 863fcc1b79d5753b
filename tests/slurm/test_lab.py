"""The test cluster is a real one: jobs run, nodes die and come back, and nothing is left of it."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.slurm.lab import cluster as lab_module
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.config import LabSettings
from ropewalk.slurm.lab.processes import lab_processes
from tests.jobs.shell import Shell
from tests.patience import Stopwatch, until
from tests.slurm.conftest import MakeLab, OrdinaryUser, need_slurm, short_folder

HOSTS = Path("/etc/hosts")


def submit(lab: Lab, script: str, *arguments: str) -> str:
    """Submit a batch script; its job id. What it prints goes to lab.folder/JOB.txt."""
    output = f"--output={lab.folder}/%j.txt"
    return lab.command("sbatch", "--parsable", "--chdir=/tmp", output, "--open-mode=append", *arguments, "--wrap", script).strip()


def state(lab: Lab, job: str, what: str = "%T") -> str:
    return lab.command("squeue", "--noheader", "--states=all", f"--jobs={job}", f"--format={what}").strip()


def printed(lab: Lab, job: str) -> list[str]:
    path = lab.folder / f"{job}.txt"
    return path.read_text().split() if path.exists() else []


def sleepers(seconds: int) -> list[psutil.Process]:
    """Living `sleep SECONDS`, wherever they hang."""
    results = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.cmdline() == ["sleep", str(seconds)]:
                results.append(process)
        except psutil.Error:
            continue
    return results


def test_a_job_runs_on_four_nodes(slurm_lab: Lab) -> None:
    names = slurm_lab.command("srun", "--nodes=4", "printenv", "SLURMD_NODENAME").split()
    assert sorted(names) == slurm_lab.nodes


def test_a_node_is_a_machine_of_its_own(slurm_lab: Lab) -> None:
    if not slurm_lab.isolated:
        pytest.skip("needs root, and namespaces")
    script = 'echo $(hostname) $(ls /dev/shm | wc -l) $(ps -e | grep -c " slurmd$"); touch /dev/shm/mine'
    lines = slurm_lab.command("srun", "--nodes=4", "bash", "-c", script).splitlines()
    assert sorted(lines) == [f"{name} 0 1" for name in slurm_lab.nodes]
    assert not Path("/dev/shm/mine").exists()
    slurm_lab.command("srun", "--nodes=4", "rm", "/dev/shm/mine")


def test_the_controller_listens_on_this_machine_alone(slurm_lab: Lab) -> None:
    (controller,) = lab_processes(slurm_lab.folder, "slurmctld")
    sockets = [each.laddr.ip for each in controller.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert sockets == ["127.0.0.1"]


def test_refusals(slurm_lab: Lab) -> None:
    with pytest.raises(BackendError, match="Node count"):
        submit(slurm_lab, "true", "--partition=short", "--nodes=3")
    with pytest.raises(BackendError, match="time limit"):
        submit(slurm_lab, "true", "--partition=short", "--time=11")


def test_a_requeued_job_starts_at_once(slurm_lab: Lab) -> None:
    job = submit(slurm_lab, "echo $SLURM_RESTART_COUNT started; sleep 4000")
    until(lambda: printed(slurm_lab, job) == ["started"])
    watch = Stopwatch()
    slurm_lab.command("scontrol", "requeue", job)
    until(lambda: printed(slurm_lab, job)[-2:] == ["1", "started"])
    assert watch.seconds < 10  # Slurm's own wait is 121 s; it takes 1
    slurm_lab.command("scancel", job)


@pytest.mark.soak("a setting of the lab that only benchmarks use")
def test_a_requeue_as_slow_as_slurms_own(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1, slow_requeue=True)
    job = submit(lab, "sleep 4001")
    until(lambda: state(lab, job) == "RUNNING")
    lab.command("scontrol", "requeue", job)
    until(lambda: state(lab, job, "%T %r") == "PENDING BeginTime")
    lab.command("scontrol", "update", f"jobid={job}", "StartTime=now+2")
    until(lambda: state(lab, job) == "RUNNING")


@pytest.mark.soak("two labs; make test preempts a run in test_stops.py")
@pytest.mark.parametrize(("user_signal", "name"), [(True, "USR2"), (False, "TERM")])
def test_preemption(make_lab: MakeLab, user_signal: bool, name: str) -> None:
    lab = make_lab(nodes=1, user_signal=user_signal, grace_seconds=30)
    step = 'for s in USR2 TERM; do trap "echo $s; exit" $s; done; echo ready; while :; do sleep 0.1; done'
    job = submit(lab, f"srun bash -c '{step}'; sleep 4002", "--signal=USR2@60", "--exclusive")
    until(lambda: printed(lab, job)[-1:] == ["ready"])
    other = submit(lab, "sleep 4003", "--partition=high", "--exclusive")
    until(lambda: name in printed(lab, job))
    lab.command("scontrol", "requeue", job)  # as our own script does once all is saved, not waiting for the grace to end
    until(lambda: state(lab, other) == "RUNNING")
    assert state(lab, job) in {"PENDING", "COMPLETING"}


@pytest.mark.soak("make test kills and starts a node in test_the_command")
def test_a_node_dies_with_all_that_runs_on_it_and_comes_back(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=2)
    remaining, lost = lab.nodes  # the first has the batch script: all steps go with it
    job = submit(lab, "srun --no-kill bash -c 'setsid sleep 4004 & sleep 4004'", "--nodes=2", "--no-kill", "--no-requeue")
    until(lambda: len(sleepers(4004)) == 4)
    lab.fail_node(lost)
    assert len(sleepers(4004)) == 2
    until(lambda: lab.states()[lost].startswith("down"))
    assert not lab.states()[remaining].startswith("down")
    lab.command("scancel", job)
    lab.start_node(lost)
    assert lab.command("srun", f"--nodelist={lost}", "printenv", "SLURMD_NODENAME").split() == [lost]


@pytest.mark.soak("another lab; make test kills and starts a controller in test_states.py")
def test_a_controller_that_comes_back_knows_its_jobs(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1)
    job = submit(lab, "sleep 4005")
    until(lambda: state(lab, job) == "RUNNING")
    # it writes its state down a few seconds late; what it has not is gone with it
    changed, saved = time.time(), lab.folder / "state/job_state"
    lab.command("scontrol", "update", f"jobid={job}", "comment=running")
    until(lambda: saved.exists() and saved.stat().st_mtime > changed)
    lab.kill_controller()
    with pytest.raises(BackendError):
        lab.command("squeue", seconds=1)
    assert len(sleepers(4005)) == 1
    lab.start_controller()
    assert state(lab, job) == "RUNNING"


@pytest.mark.soak(
    "a database that tests alone use; make test has what Slurm answers of it in test_states.py and test_start_estimate.py"
)
def test_accounting(make_lab: MakeLab, ordinary_user: OrdinaryUser) -> None:
    lab = make_lab(nodes=2, accounting=True)
    job = submit(lab, "true")
    sacct = ("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job}", "--format=State")
    until(lambda: lab.command(*sacct).strip() == "COMPLETED")
    with pytest.raises(BackendError, match="QOSMaxNodePerJobLimit"):
        submit(lab, "true", "--qos=small", "--nodes=2")
    owned = ["mariadb", "--no-defaults", "--user=root", f"--socket={lab.socket}", "--execute", "select 1"]
    assert ordinary_user.run(*owned).returncode != 0, "it is open to this user alone"
    assert "StoragePass" not in (lab.folder / "etc/slurmdbd.conf").read_text()
    lab.database.chmod(0o755)
    assert "Access denied" in ordinary_user.run(*owned).stderr, "and its root is no other user"
    lab.database.chmod(0o700)
    lab.kill_accounting()
    assert not lab.daemons.answers(*sacct)
    lab.start_accounting()
    assert lab.daemons.answers(*sacct)


def test_two_clusters_side_by_side(slurm_lab: Lab, make_lab: MakeLab) -> None:
    other = make_lab(nodes=2)
    assert not set(slurm_lab.nodes) & set(other.nodes)
    assert not set(slurm_lab.location.ports) & set(other.location.ports)
    for lab in (slurm_lab, other):
        assert sorted(lab.command("srun", "--nodes=2", "printenv", "SLURM_CONF").split()) == [lab.env["SLURM_CONF"]] * 2
    other.kill_node(other.nodes[0])
    assert not any(word.startswith("down") for word in slurm_lab.states().values())


AS_ORDINARY_USER = """
import subprocess, sys
from pathlib import Path
from ropewalk.slurm.lab.cluster import Lab
from ropewalk.slurm.lab.config import LabSettings
from tests.jobs.shell import Shell
from tests.patience import Stopwatch, until
from tests.slurm.test_lab import sleepers, submit
lab = Lab(Path(sys.argv[1]))
lab.up(LabSettings(nodes=2))
assert not lab.isolated
try:
    kept, lost = lab.nodes  # the first has the batch script: all steps go with it
    job = submit(lab, "srun --no-kill bash -c 'setsid sleep 4006 & sleep 4006'", "--nodes=2", "--no-kill", "--no-requeue")
    until(lambda: len(sleepers(4006)) == 4)
    lab.fail_node(lost)
    assert len(sleepers(4006)) == 2, sleepers(4006)
    lab.command("scancel", job)
    lab.start_node(lost)
    print(*sorted(lab.command("srun", "--nodes=2", "printenv", "SLURMD_NODENAME").split()) == sorted(lab.nodes) and ["well"])
finally:
    lab.down()
assert not lab.folder.exists()
assert not sleepers(4006)
"""


@pytest.mark.soak(
    "a lab of its own; make test runs test_an_ordinary_user_submits_to_roots_cluster, and starts a lab in test_the_command"
)
def test_an_ordinary_users_cluster(ordinary_user: OrdinaryUser) -> None:
    need_slurm()
    done = ordinary_user.run(sys.executable, "-c", AS_ORDINARY_USER, str(ordinary_user.home / "lab"))
    assert done.stdout.split() == ["well"], done.stderr
    assert not lab_processes(ordinary_user.home / "lab")


def test_an_ordinary_user_submits_to_roots_cluster(slurm_lab: Lab, ordinary_user: OrdinaryUser) -> None:
    done = ordinary_user.run("srun", "--nodes=2", "id", "-un")
    assert done.stdout.split() == [ordinary_user.name] * 2, done.stderr


def others_hosts() -> list[str]:
    """The lines that are no lab's: those of labs come and go beside this test."""
    return [line for line in HOSTS.read_text().splitlines() if "# ropewalk lab " not in line]


def test_nothing_is_left_whatever_died_before() -> None:
    need_slurm()
    hosts = others_hosts()
    lab = Lab(short_folder())
    lab.up(LabSettings(nodes=2))
    submit(lab, "sleep 4007", "--nodes=2")
    until(lambda: sleepers(4007))
    for process in lab_processes(lab.folder):
        with suppress(psutil.NoSuchProcess):  # it ended with one before
            process.kill()
    lab.down()
    assert not lab.folder.exists()
    assert not lab_processes(lab.folder)
    assert not sleepers(4007)
    assert str(lab.folder) not in HOSTS.read_text()
    assert others_hosts() == hosts
    assert str(lab.folder) not in Path("/proc/self/mounts").read_text()
    lab.down()  # a second time does no harm


def ropewalk(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("ropewalk"), "lab", "slurm", *arguments]
    # pipes on purpose: a daemon that inherits one would keep this from returning
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need_slurm()
    folder = short_folder() / "lab"
    shell = Shell(capsys, monkeypatch, tmp_path)
    try:
        started = ropewalk("up", str(folder), "--nodes=2", "--cpus=1")
        assert f"export SLURM_CONF={folder}/etc/slurm.conf" in started.stdout, started.stderr
        node = Lab(folder).nodes[1]
        assert "stop it first" in shell.mistake("lab", "slurm", "up", str(folder))
        assert f"{node} idle" in shell("lab", "slurm", "status", str(folder))
        assert "is dead" in shell("lab", "slurm", "kill-node", node, str(folder))
        assert "no node 'n9'" in shell.mistake("lab", "slurm", "kill-node", "n9", str(folder))
        assert f"{node} is idle" in ropewalk("start-node", node, str(folder)).stdout
        Lab(folder).kill_controller()
        shell("lab", "slurm", "status", str(folder), expect=1)
        assert "controller is dead" in shell.err
    finally:
        stopped = ropewalk("down", str(folder))
    assert "down and removed" in stopped.stdout
    assert not folder.exists()
    folder.parent.rmdir()
    shell("lab", "slurm", "status", str(folder), expect=2)


def test_what_cannot_be_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").touch()
    long = Path("/tmp") / ("x" * 60)
    if not lab_module.missing_programs():
        with pytest.raises(ConfigError, match="not empty"):
            Lab(tmp_path).up()
        with pytest.raises(ConfigError, match="too long for sockets"):
            Lab(long).up()
        with pytest.raises(ConfigError, match="1 to 40"):
            Lab(Path("/tmp/none")).up(LabSettings(nodes=41))
    monkeypatch.setattr(lab_module, "PATH", os.devnull)
    with pytest.raises(ConfigError, match=r"slurmctld.* not found.*apt-get install"):
        Lab(Path("/tmp/none")).up()
    Lab(tmp_path).down()
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, ordinary_user: OrdinaryUser, mode: int) -> None:
    """The owner could change the commands of slurmctld, and the default folder's name is public."""
    if os.geteuid():
        pytest.skip("only root can make folders for others")
    folder = ordinary_user.home / "slurm-lab-0"
    folder.mkdir()
    folder.chmod(mode)
    (folder / "lab.json").write_text("{}")
    os.chown(folder, ordinary_user.uid, ordinary_user.gid)
    with pytest.raises(ConfigError, match=f"belongs to {ordinary_user.name}; name a folder of your own"):
        Lab(folder)
    with pytest.raises(ConfigError, match="can be changed by other users"):
        Lab(ordinary_user.home / "not there yet")
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    os.chown(link, ordinary_user.uid, ordinary_user.gid, follow_symlinks=False)
    with pytest.raises(ConfigError, match="is a link that another user created"):
        Lab(link)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for folder in (tmp_path / "open", tmp_path / "open/lab"):
        with pytest.raises(ConfigError, match="open can be changed by other users"):
            Lab(folder)
    (tmp_path / "open").chmod(0o1777)
    Lab(tmp_path / "open/lab")

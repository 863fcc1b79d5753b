"""Would it wait, and what would start sooner: on a real cluster that is idle, busy, reserved, broken, limited, away."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.backends.base import Check, Profile
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.backend import SlurmBackend
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.lab.cluster import Lab
from tests.jobs.conftest import shell  # noqa: F401
from tests.jobs.shell import Shell, pretrain
from tests.patience import Patience, Stopwatch, until
from tests.slurm.conftest import MakeLab

QUICK_SECONDS = 2.0


def planned() -> RunDir:
    return RunDir("/nowhere/toy-1", record={"run": "toy-1", "resources": {}, "config": {}})


def estimate(resources: dict[str, Any] | None = None, slurm: Slurm | None = None, **profile: Any) -> str:
    """The sentence, with node names as n1 whatever this lab calls them, and times as HH:MM."""
    run = planned()
    watch = Stopwatch()
    backend = SlurmBackend(Profile(name="lab", backend="slurm", options=profile), slurm)
    start_estimate = backend.start_estimate(run, Resources.model_validate(resources or {}))
    assert watch.seconds < QUICK_SECONDS
    assert "\n" not in start_estimate
    start_estimate = re.sub(r"\bn[a-z](?=[\d\[])", "n", start_estimate)
    return re.sub(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d", "HH:MM", start_estimate)


Busy = Callable[..., str]


@pytest.fixture
def busy(slurm_lab: Lab) -> Iterator[Busy]:
    """Keep nodes busy; they are idle again after the test."""
    jobs: list[str] = []

    def start(*arguments: str, wait: bool = True) -> str:
        script = ("--chdir=/tmp", "--output=/dev/null", "--wrap=sleep 3000")
        jobs.append(slurm_lab.command("sbatch", "--parsable", *arguments, *script).strip())
        if wait:
            until(lambda: "RUNNING" in slurm_lab.command("squeue", "--noheader", f"--jobs={jobs[-1]}", "--format=%T"))
        return jobs[-1]

    yield start
    slurm_lab.command("scancel", *jobs)
    until(lambda: set(slurm_lab.states().values()) == {"idle"})


# --- starting, waiting


def test_an_idle_cluster(slurm_lab: Lab) -> None:
    until(lambda: set(slurm_lab.states().values()) == {"idle"})  # the job of another test may be completing
    assert estimate() == "It would start at once on n1."
    assert estimate({"nodes": 4, "cpus": 4, "time_limit_minutes": 30}) == "It would start at once on n[1-4]."
    assert estimate({"nodes": "1..4"}) == "It would start at once on n[1-4]."


def test_a_busy_cluster(slurm_lab: Lab, busy: Busy) -> None:
    busy("--nodes=3", "--exclusive", "--time=20")
    waiting = "It would wait until about HH:MM (partition main has 1 of 4 nodes free)"
    assert estimate({"nodes": 2}) == f"{waiting}; 1 node would start at once."
    assert estimate({"nodes": "2..6"}) == f"{waiting}; with resources.nodes=1..6 it would start at once."
    assert estimate({"nodes": "1..4"}) == "It would start at once on n4."
    assert estimate({"nodes": 4}, partition="high") == "It would start at once on n[1-4], by preempting others."
    busy("--nodes=1", "--cpus-per-task=1", "--time=30")
    waiting = waiting.replace("1 of", "0 of")
    assert estimate({"cpus": 4}) == f"{waiting}; with resources.cpus=3 it would start at once."
    busy("--nodes=4", "--exclusive", "--time=30", wait=False)
    until(lambda: estimate({"cpus": 2}) == f"{waiting[:-1]}, 1 job waits already).", Patience.SIGNAL)


def test_smaller_that_is_sooner_but_not_at_once(slurm_lab: Lab, busy: Busy) -> None:
    busy("--nodes=2", "--exclusive", "--time=10")
    busy("--nodes=2", "--exclusive", "--time=40")
    start_estimate = estimate({"nodes": 4})
    assert start_estimate == (
        "It would wait until about HH:MM (partition main has 0 of 4 nodes free); 2 nodes would start at about HH:MM."
    )


@pytest.mark.parametrize(("start", "flags"), [("now+90minutes", "maint,ignore_jobs"), ("now+90minutes", "ignore_jobs")])
def test_a_reservation_to_come(slurm_lab: Lab, start: str, flags: str) -> None:
    arguments = ["users=root", "nodes=ALL", "duration=60", f"starttime={start}", f"flags={flags}"]
    slurm_lab.command("scontrol", "create", "reservation", "reservationname=soon", *arguments)
    try:
        kind = "maintenance " if "maint" in flags else ""
        why = f"It would wait until about HH:MM: a {kind}reservation begins at HH:MM"
        assert estimate() == f"{why}; with resources.time_limit_minutes=85 it would start at once."
        assert estimate({"time_limit_minutes": 80}) == "It would start at once on n1."
        assert estimate({"grace_seconds": 6000, "time_limit_minutes": 200}) == f"{why.replace(': a', ' (a')})."
    finally:
        slurm_lab.command("scontrol", "delete", "reservation=soon")


def test_a_reservation_that_is_on(slurm_lab: Lab) -> None:
    arguments = ["users=root", "nodes=ALL", "duration=60", "starttime=now", "flags=maint,ignore_jobs"]
    slurm_lab.command("scontrol", "create", "reservation", "reservationname=on", *arguments)
    try:
        assert estimate() == "It would wait until about HH:MM (reservation on holds 4 nodes until HH:MM)."
        assert estimate(reservation="on") == "It would start at once on n1."
    finally:
        slurm_lab.command("scontrol", "delete", "reservation=on")
        until(lambda: set(slurm_lab.states().values()) == {"idle"})


def test_nodes_that_are_drained(slurm_lab: Lab) -> None:
    last = slurm_lab.nodes[-1]
    slurm_lab.command("scontrol", "update", f"nodename={last}", "state=drain", "reason=fan")
    try:
        why = "(partition main has 3 of 4 nodes free, 1 is down or drained)"
        assert estimate({"nodes": 4}) == f"It would wait until nodes come back {why}; 3 nodes would start at once."
    finally:
        slurm_lab.command("scontrol", "update", f"nodename={last}", "state=resume")
        until(lambda: set(slurm_lab.states().values()) == {"idle"})


def test_a_partition_that_is_down(slurm_lab: Lab) -> None:
    for state, sentence in {
        "down": "It would wait until partition short is up again; up: main, high.",
        "drain": "Slurm would refuse it: partition short is in state DRAIN; up: main, high.",
    }.items():
        slurm_lab.command("scontrol", "update", "partitionname=short", f"state={state}")
        try:
            assert estimate(partition="short") == sentence
        finally:
            slurm_lab.command("scontrol", "update", "partitionname=short", "state=up")


# --- being refused


@pytest.mark.parametrize(
    ("resources", "profile", "sentence"),
    [
        ({"nodes": 3}, {"partition": "short"}, "partition short allows at most 2 nodes; 2 nodes would start at once."),
        (
            {"time_limit_minutes": 30},
            {"partition": "short"},
            "partition short allows at most 10 minutes; with resources.time_limit_minutes=10 it would start at once.",
        ),
        (
            {"nodes": "3..4", "time_limit_minutes": 30},
            {"partition": "short"},
            "partition short allows at most 2 nodes and partition short allows at most 10 minutes;"
            " with resources.nodes=2 and resources.time_limit_minutes=10 it would start at once.",
        ),
        (
            {"nodes": "1..4"},
            {"partition": "short"},
            "partition short allows at most 2 nodes; with resources.nodes=1..2 it would start at once.",
        ),
        ({"nodes": 5}, {}, "partition main has 4 nodes; 4 nodes would start at once."),
        ({"cpus": 8}, {}, "no node of partition main has more than 4 CPUs; with resources.cpus=4 it would start at once."),
        ({"gpus": 1}, {}, "no node of partition main has GPUs."),
        (
            {"memory_gib": 99},
            {},
            "no node of partition main has more than 3.9 GiB; with resources.memory_gib=3.9 it would start at once.",
        ),
        ({}, {"partition": "mian"}, "there is no partition 'mian'; did you mean 'main'?"),
        ({}, {"partition": "main,x"}, "there is no partition 'x'; the cluster has main, high, short."),
        ({}, {"constraint": "a100"}, "Invalid feature specification."),
        ({}, {"reservation": "none"}, "Requested reservation is invalid."),
        ({}, {"sbatch": {"licenses": "none"}}, "Invalid license specification."),
    ],
)
def test_refusals(slurm_lab: Lab, resources: dict[str, Any], profile: dict[str, Any], sentence: str) -> None:
    assert estimate(resources, **profile) == f"Slurm would refuse it: {sentence}"
    backend = SlurmBackend(Profile(name="lab", backend="slurm", options=profile))
    with pytest.raises(ConfigError, match="cluster 'lab' would refuse the run: "):
        backend.check_feasible(planned(), Resources.model_validate(resources))


@pytest.mark.soak("a lab with a database; test_refusals has the limits of partitions, test_other_words what Slurm says of others")
def test_limits_of_accounting(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=3, accounting=True)
    item = "Slurm would refuse it: QoS small allows at most 1 node; 1 node would start at once."
    assert estimate({"nodes": 2}, qos="small") == item
    assert estimate({"time_limit_minutes": 20}, qos="small").startswith("Slurm would refuse it: QoS small allows at most 10 min")
    assert estimate(qos="nope") == (
        "Slurm would refuse it: Invalid qos specification; `ropewalk doctor --on` this cluster lists yours."
    )
    lab.command("sbatch", "--qos=single", "--chdir=/tmp", "--output=/dev/null", "--wrap=sleep 3000")
    until(lambda: "mix" in lab.states().values() or "mixed" in lab.states().values())
    assert estimate(qos="single") == "It would wait: QoS single allows 1 job at a time (MaxJobsPU), 1 job runs."
    lab.command("sacctmgr", "--immediate", "modify", "user", "root", "where", "account=lab", "set", "grptres=node=2")
    limited = "It would wait: account lab allows 2 nodes at a time (GrpTRES), 1 node in use; 1 node would not."
    until(lambda: estimate({"nodes": 2}) == limited)
    checks = by_name(SlurmBackend(Profile(name="lab", backend="slurm", options={"account": "other"})).checks())
    assert checks["accounting"].detail == "available; accounts lab, root"
    assert (checks["account"].ok, checks["account"].detail) == (False, "'other' is not one of your accounts: lab, root")
    checks = by_name(SlurmBackend(Profile(name="lab", backend="slurm", options={"qos": "nope"})).checks())
    assert checks["qos"].detail == "'nope' is not one of your QoS: normal, single, small"


# --- nobody answers


def test_a_cluster_that_is_away(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1)
    lab.kill_controller()
    away = "Slurm cannot be asked whether the run would wait: its controller does not answer (Slurmctld(primary) at "
    assert estimate().startswith(away)
    checks = by_name(SlurmBackend(Profile(name="lab", backend="slurm")).checks())
    assert not checks["controller"].ok
    assert "partition" not in checks


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (FileNotFoundError("scontrol"), "scontrol: not found; is Slurm on this machine? `ropewalk lab slurm up` starts one."),
        (subprocess.TimeoutExpired("scontrol", 5), "scontrol did not end within 5 s."),
        (("Slurmctld(primary) at vm is UP", 0), ""),
        (("some wrapper of a site", 0), "its controller does not answer (some wrapper of a site)."),
        (("no such host", 1), "its controller does not answer (no such host)."),
        (("host ctl1 not found", 1), "its controller does not answer (host ctl1 not found)."),
    ],
)
def test_whatever_is_answered_a_sentence_comes(answer: Any, sentence: str) -> None:
    def run(command: Sequence[str], _: float) -> subprocess.CompletedProcess[str]:
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, answer[1], answer[0], "")

    expected = f"Slurm cannot be asked whether the run would wait: {sentence}"
    if not sentence:
        expected = "Slurm would accept it but does not say when it would start."
    assert estimate({"nodes": 2}, Slurm(run)) == expected


# --- a cluster that is made up, in the words of other versions


class MadeUp:
    """Sixteen nodes of eight GPUs, of which some are free; sbatch says no to all but `fits`."""

    def __init__(self, **answers: str) -> None:
        later = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 7200))
        self.asked: list[Sequence[str]] = []
        self.fits: Sequence[str] = ()
        self.now = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.answers = {
            "ping": "Slurmctld(primary) at c1 is UP\nSlurmctld(backup) at c2 is DOWN\n",
            "partition": "PartitionName=gpu Default=YES GraceTime=0 MaxNodes=UNLIMITED MaxTime=2-00:00:00 State=UP TotalNodes=16",
            "reservation": "No reservations in the system\n",
            "sinfo": "".join(f"n{i}|{'alloc' if i > 5 else 'idle~'}|0/64/0/64|500000|gpu:a100:8(S:0-1)\n" for i in range(1, 17)),
            "squeue": "Priority\nResources\nDependency\n",
            "sbatch": f"sbatch: Job 7 to start at {later} using 512 processors on nodes n[1-8] in partition gpu\n",
            **answers,
        }

    def __call__(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        name = next((word for word in command if word in self.answers), "")
        if name == "sbatch" and set(self.fits) & set(command):
            message = f"sbatch: Job 8 to start at {self.now} using 64 processors on n1\n"  # without a partition's name
            return subprocess.CompletedProcess(command, 0, "", message)
        refused = name == "sbatch" and "failure" in self.answers[name]
        answer = ("", self.answers[name]) if name == "sbatch" else (self.answers.get(name, ""), "")
        return subprocess.CompletedProcess(command, int(refused or not name), *answer)


def test_fewer_nodes_of_many() -> None:
    cluster = MadeUp()
    cluster.fits = ("--nodes=4",)
    why = "(partition gpu has 5 of 16 nodes free, 2 jobs wait already)"
    start_estimate = estimate({"nodes": 8, "gpus": 8}, Slurm(cluster))
    assert start_estimate == f"It would wait until about HH:MM {why}; 4 nodes would start at once."
    tried = [command[2] for command in cluster.asked if command[0] == "sbatch"]
    assert [word for word in tried if word.startswith("--")] == ["--nodes=5", "--nodes=4"]


def test_no_more_questions_than_five() -> None:
    cluster = MadeUp()
    assert estimate({"nodes": 8, "cpus": 32}, Slurm(cluster)).endswith("2 jobs wait already).")
    assert sum(command[0] == "sbatch" for command in cluster.asked) == 4
    assert not [command for command in cluster.asked if "assoc_mgr" in command]


def test_others_that_wait_may_come_first() -> None:
    cluster = MadeUp()
    cluster.fits = ("--test-only",)
    assert estimate({}, Slurm(cluster)) == "It would start at once on n1, unless 2 jobs waiting in that partition come first."


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("sbatch: a site's greeting\n", "Slurm would accept it but does not say when it would start."),
        (
            "sbatch: error: QOSMaxGRESPerUser\nallocation failure: Job violates policy\n",
            "QOSMaxGRESPerUser; Job violates policy.",
        ),
        ("allocation failure: Requested node configuration is not available\n", "no node of partition gpu has more than 8 GPUs."),
        ("allocation failure: Job submit/allocate failed: no credit.\n", "no node of partition gpu has more than 8 GPUs."),
    ],
)
def test_other_words(message: str, sentence: str) -> None:
    gpus = 1 if "QOS" in message else 16
    result = estimate({"gpus": gpus}, Slurm(MadeUp(sbatch=message)))
    assert result == (f"Slurm would refuse it: {sentence}" if "failure" in message else sentence)


def test_all_nodes_gone() -> None:
    nodes = "n1|down*|0/0/64/64|1|(null)\nn2|drain|0/0/64/64|1|(null)\n"
    refusal = "allocation failure: Requested node configuration is not available\n"
    start_estimate = estimate({}, Slurm(MadeUp(sinfo=nodes, sbatch=refusal)))
    assert start_estimate == (
        "It would wait until nodes come back (partition gpu has 0 of 2 nodes free, 2 are down or drained, 2 jobs wait already)."
    )


# --- through the command


def test_a_dry_run_ends_with_it(slurm_lab: Lab, shell: Shell) -> None:  # noqa: F811
    Path(os.environ["ROPEWALK_CLUSTERS"]).write_text(yaml.safe_dump({"short": {"backend": "slurm", "partition": "short"}}))
    script = shell("submit", *pretrain("--on", "short", "--script", "resources.nodes=3"))
    assert script.splitlines()[-1] == (
        "# Slurm would refuse it: partition short allows at most 2 nodes; 2 nodes would start at once."
    )
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert slurm_lab.command("squeue", "--noheader", "--states=all", "--name=ropewalk-pretrain-dry-run") == ""
    many = shell("submit", *pretrain("--on", "short", "--script", "--each", "seed=1..3"))
    assert "array.txt" in many
    assert many.splitlines()[-1].startswith("# It would start at once on ")
    assert not Path("runs").exists()


# --- doctor


def by_name(checks: Sequence[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_cluster_that_is_well(slurm_lab: Lab, tmp_path: Path) -> None:
    options = {"runs": str(tmp_path), "partition": "short"}
    checks = by_name(SlurmBackend(Profile(name="lab", backend="slurm", options=options)).checks())
    assert all(check.ok for check in checks.values()), checks
    assert checks["partition"].detail == "short allows 2 nodes for 10 minutes; of 4 nodes 4 are up and 4 free"
    assert checks["preemption"].detail == "none on this cluster"
    assert checks["accounting"].detail.startswith("none; not required")
    assert re.fullmatch(r"slurm(-wlm)? \d+\.\d+.*", checks["slurm"].detail)
    assert checks["controller"].detail.endswith("is UP")


def test_a_cluster_that_is_not(slurm_lab: Lab, tmp_path: Path) -> None:
    container = {"runtime": "apptainer", "image": "x.sif"}
    options = {"runs": str(tmp_path / "none/runs"), "partition": "nope", "container": container}
    checks = by_name(SlurmBackend(Profile(name="lab", backend="slurm", options=options)).checks())
    assert (checks["partition"].ok, checks["partition"].detail) == (
        False,
        "'nope' does not exist; the cluster has main, high, short",
    )
    assert not checks["runs of this cluster"].ok
    assert "no such directory" in checks["runs of this cluster"].detail
    assert checks["container"].ok


def test_short_notice_and_a_short_memory_are_warnings(make_lab: MakeLab) -> None:
    make_lab(nodes=1, grace_seconds=5, user_signal=False, min_job_age_seconds=10)
    checks = by_name(SlurmBackend(Profile(name="lab", backend="slurm")).checks())
    assert checks["preemption"].ok
    assert checks["preemption"].detail.startswith("warning: by partition_prio, 5 s notice (GraceTime), with SIGTERM")
    assert "PreemptParameters=send_user_signal" in checks["preemption"].detail
    assert checks["memory"].detail.startswith("warning: ended jobs are remembered for 10 s")


def test_enough_notice(make_lab: MakeLab) -> None:
    make_lab(nodes=1, grace_seconds=120)
    checks = by_name(SlurmBackend(Profile(name="lab", backend="slurm")).checks())
    assert checks["preemption"].detail == "by partition_prio, 120 s notice (GraceTime), with the signal that the run requested"

"""Parsing of the output of Slurm's commands, which are simulated."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.errors import BackendError, SchedulerAwayError
from ropewalk.cluster.process.scratch import make_scratch, remove_scratch
from ropewalk.slurm import cluster_info
from ropewalk.slurm.commands import QUEUE_FORMAT, Job, PlannedStart, Slurm, parse_job, plain_environment, run_command
from ropewalk.slurm.runtime.job_details import ends_at, slurm_stop_reason
from ropewalk.slurm.times import FOREVER, minutes_of, seconds_of


class Answers:
    """Answers every command with the same words, and remembers what it was asked."""

    def __init__(self, out: str = "", err: str = "", code: int = 0, error: Exception | None = None) -> None:
        self.out, self.err, self.code, self.error = out, err, code, error
        self.asked: list[list[str]] = []

    def __call__(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        self.asked.append(list(command))
        if self.error:
            raise self.error
        return subprocess.CompletedProcess(command, self.code, self.out, self.err)


def slurm(*answer: Any, **more: Any) -> Slurm:
    return Slurm(Answers(*answer, **more))


# --- errors


@pytest.mark.parametrize(
    "message",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
        "sbatch: error: Batch job submission failed: Communication connection failure",
    ],
)
def test_a_controller_that_is_away_is_told_from_a_refusal(message: str) -> None:
    with pytest.raises(SchedulerAwayError):
        slurm(err=message, code=1).ask("squeue")


def test_a_refusal_comes_in_slurms_own_words() -> None:
    message = "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)\n"
    with pytest.raises(BackendError) as caught:
        slurm(err=message, code=1).sbatch("x.sbatch")
    assert not isinstance(caught.value, SchedulerAwayError)
    assert str(caught.value).startswith("sbatch: Batch job submission failed: Requested time limit is invalid")
    lost = "sbatch: error: fetch_config: DNS SRV lookup failed sbatch: fatal: Could not establish a configuration source"
    with pytest.raises(BackendError, match="sbatch: this machine belongs to no Slurm cluster; submit from a login node"):
        slurm(err=lost, code=1).sbatch("x.sbatch")
    with pytest.raises(BackendError, match="squeue: exit code 7"):
        slurm(code=7).ask("squeue")


def test_no_slurm_and_no_answer() -> None:
    with pytest.raises(BackendError, match=r"squeue: not found; is Slurm on this machine\?"):
        slurm(error=FileNotFoundError("squeue")).ask("squeue")
    with pytest.raises(match="did not end within 60 s"):
        slurm(error=subprocess.TimeoutExpired("squeue", 60)).ask("squeue")


def test_a_job_that_is_over_is_cancelled_without_complaint() -> None:
    slurm(err="scancel: error: Kill job error on job id 12: Invalid job id specified", code=1).cancel("12")
    with pytest.raises(BackendError, match="Access"):
        slurm(err="scancel: error: Kill job error on job id 12: Access/permission denied", code=1).cancel("12")
    with pytest.raises(SchedulerAwayError):
        slurm(err="scancel: error: Unable to contact slurm controller", code=1).cancel("12")


# --- jobs


def test_sbatch_tells_the_job() -> None:
    answers = Answers("123\n")
    assert Slurm(answers).sbatch(Path("/r/job.sbatch"), "--chdir=/r") == "123"
    assert answers.asked == [["sbatch", "--parsable", "--chdir=/r", "/r/job.sbatch"]]
    assert slurm("sbatch: a site's greeting\n123;cluster\n").sbatch("x") == "123"


def test_lines_of_squeue() -> None:
    line = "7_3|RUNNING|None|n[1-2]|2026-01-01T10:00:00|2026-01-01T11:00:00|ropewalk-x|ropewalk:x:1|with a bar"
    job = Job(
        id="7_3",
        state="RUNNING",
        reason="None",
        nodes="n[1-2]",
        start="2026-01-01T10:00:00",
        end="2026-01-01T11:00:00",
        name="ropewalk-x",
        comment="ropewalk:x:1|with a bar",
    )
    assert parse_job(line) == job
    answers = Answers(f"{line}\nslurm_load_jobs: some warning\n\n")
    assert Slurm(answers).queue("--jobs=7") == [job]
    assert answers.asked[0][-2:] == [f"--format={QUEUE_FORMAT}", "--jobs=7"]
    assert slurm("").my_jobs() == []


def test_elements_of_an_array_that_squeue_tells_as_one() -> None:
    line = "7_[0-1,5,8-9%4]|CANCELLED|None||N/A|N/A|ropewalk-x|ropewalk:x:1\n"
    assert [job.id for job in slurm(line).my_jobs()] == ["7_0", "7_1", "7_5", "7_8", "7_9"]


@pytest.mark.parametrize(
    ("array", "single"),
    [
        ("7_[0-12:4]", ["7_0", "7_4", "7_8", "7_12"]),  # as Slurm tells spans over 10 of more than 5
        ("7_[0,3-9:3%2]", ["7_0", "7_3", "7_6", "7_9"]),
        ("7_[5]", ["7_5"]),
        ("7_[0-3,...]", ["7_[0-3,...]"]),
        ("7_[0-12:]", ["7_[0-12:]"]),
        ("7_[0x1F]", ["7_[0x1F]"]),
        ("7_[", ["7_["]),
        ("7_[1-4:0]", ["7_1", "7_2", "7_3", "7_4"]),
        ("7+1", ["7+1"]),
        ("", [""]),
    ],
)
def test_a_stranger_s_array_of_any_form_ends_no_question(array: str, single: list[str]) -> None:
    lines = f"{array}|CANCELLED|None||N/A|N/A|sim|\n9|RUNNING|None||N/A|N/A|ropewalk-x|ropewalk:x:1\n"
    assert [job.id for job in slurm(lines).my_jobs()] == [*single, "9"]


def test_accounting_where_there_is_some() -> None:
    output = slurm("5|CANCELLED by 0|ropewalk-a\n6_1|COMPLETED|ropewalk-b|c\n7||x\n8| |y\n").accounting_states(["5", "6", "7"])
    assert output == {"5": ("ropewalk-a", "CANCELLED"), "6_1": ("ropewalk-b|c", "COMPLETED")}
    assert slurm(err="Slurm accounting storage is disabled", code=1).accounting_states(["5"]) == {}
    assert slurm(error=FileNotFoundError("sacct")).accounting_states(["5"]) == {}


def test_other_questions() -> None:
    message = "JobId=5 JobName=a=b JobState=RUNNING EndTime=2026-01-01T11:00:00 TRES=cpu=4,node=2 Power= Comment=a word"
    details = slurm(message).job_details("5")
    assert (details["JobName"], details["TRES"], details["Power"]) == ("a=b", "cpu=4,node=2", "")
    assert slurm("n1\nn2\n").hosts("n[1-2]") == ["n1", "n2"]
    assert slurm(code=1).hosts("") == []
    assert slurm("down*\ndown*\n").node_state("n1") == "down*"


def test_a_trial_submission_is_told_on_stderr() -> None:
    answers = Answers(err="sbatch: Job 5 to start at 2026-01-01T10:00:00 using 2 processors on nodes n1 in partition main\n")
    planned = PlannedStart(start=seconds_of("2026-01-01T10:00:00"), nodes="n1", partition="main")
    assert Slurm(answers).test_only("x", "--nodes=1") == planned
    assert answers.asked == [["sbatch", "--test-only", "--nodes=1", "x"]]
    assert (
        slurm(err="allocation failure: Invalid qos specification\n", code=1).test_only("x").refusal == "Invalid qos specification"
    )
    with pytest.raises(SchedulerAwayError):
        slurm(err="allocation failure: Unable to contact slurm controller\n", code=1).test_only("x")


def test_the_environment_of_a_question() -> None:
    outside = {
        "PATH": "/bin",
        "SLURM_CONF": "/c",
        "SQUEUE_FORMAT": "%i",
        "SBATCH_ACCOUNT": "lab",
        "SLURM_TIME_FORMAT": "relative",
    }
    assert plain_environment(outside) == {"PATH": "/bin", "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "lab"}
    inside = {**outside, "SLURM_JOB_ID": "5", "SLURM_NNODES": "2", "SRUN_DEBUG": "3"}
    assert plain_environment(inside) == {"PATH": "/bin", "SLURM_CONF": "/c"}


def test_a_job_submitted_by_an_agent_does_not_use_its_temporary_directory(tmp_path: Path) -> None:
    """Such a directory went with the agent, and took a successor's files along."""
    agents = make_scratch("a", tmp_path)
    try:
        inner = make_scratch("a", agents)
        assert plain_environment({"TMPDIR": str(inner)}) == {"TMPDIR": str(tmp_path)}
    finally:
        remove_scratch(agents)
    assert plain_environment({"TMPDIR": str(tmp_path)}) == {"TMPDIR": str(tmp_path)}


def test_why_a_job_is_taken_away() -> None:
    assert seconds_of("Unknown") == seconds_of("N/A") == FOREVER
    assert ends_at({"EndTime": "2026-01-01T11:00:00"}) - seconds_of("2026-01-01T10:00:00") == 3600
    running = {"JobState": "RUNNING", "EndTime": "Unknown", "PreemptTime": "None"}
    assert slurm_stop_reason(running, 120) == ""
    assert slurm_stop_reason({**running, "PreemptTime": "2026-01-01T10:00:00"}, 120) == "preempted"
    assert slurm_stop_reason({**running, "JobState": "CANCELLED"}, 120) == "cancelled"
    assert slurm_stop_reason({**running, "JobState": "PENDING"}, 120) == "requeued by Slurm"
    assert slurm_stop_reason({**running, "EndTime": "2026-01-01T11:00:00"}, 120) == "time limit"


# --- the cluster, in the words of old and new versions

PARTITION_20_11 = (
    "PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=01:00:00"
    " DisableRootJobs=NO ExclusiveUser=NO GraceTime=30 Hidden=NO MaxNodes=8 MaxTime=2-00:00:00 MinNodes=0 LLN=NO"
    " MaxCPUsPerNode=UNLIMITED Nodes=n[1-16] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO"
    " OverTimeLimit=NONE PreemptMode=REQUEUE State=DRAIN TotalCPUs=1024 TotalNodes=16 SelectTypeParameters=NONE"
    " JobDefaults=(null) DefMemPerCPU=4000 MaxMemPerNode=UNLIMITED \n"
)


def test_partitions() -> None:
    expected = cluster_info.Partition(
        name="gpu",
        state="DRAIN",
        default=True,
        max_nodes=8,
        max_minutes=2880,
        grace_seconds=30,
        preempt_mode="REQUEUE",
        nodes=16,
    )
    assert cluster_info.partitions(slurm(PARTITION_20_11)) == [expected]
    newer = PARTITION_20_11.replace("MaxNodes=8 MaxTime=2-00:00:00", "MaxNodes=UNLIMITED MaxTime=UNLIMITED")
    newer = newer.replace("ExclusiveUser=NO ", "ExclusiveUser=NO ExclusiveTopo=NO ") + "TRES=cpu=1024,node=16,billing=1024\n"
    result = cluster_info.partitions(slurm(newer))[0]
    assert (result.max_nodes, result.max_minutes) == (None, None)


def test_nodes() -> None:
    text = "\n".join(
        [
            "n1|idle|0/64/0/64|257000|gpu:a100:4(S:0-1)",
            "n2|mix-|32/32/0/64|257000+|gpu:a100:2,gpu:v100:2,nvme:1",
            "n3|idle~|0/64/0/64|257000|gpu:4",
            "n4|down*|0/0/64/64|257000|(null)",
            "n5|drng@|10/0/54/64|1|(null)",
            "n6|idle*|0/64/0/64|1|(null)",
            "a warning that is no node",
        ]
    )
    result = cluster_info.nodes(slurm(text), "gpu")
    assert [node.gpus for node in result] == [4, 4, 4, 0, 0, 0]
    assert [node.free for node in result] == [True, False, True, False, False, False]
    assert [node.usable for node in result] == [True, True, True, False, False, False]
    assert (result[1].idle_cpus, result[1].cpus, result[1].memory_mib) == (32, 64, 257000)


def test_reservations() -> None:
    text = (
        "ReservationName=maint StartTime=2026-01-01T18:00:00 EndTime=2026-01-01T20:00:00 Duration=02:00:00 Nodes=n[1-4]"
        " NodeCnt=4 CoreCnt=16 Features=(null) PartitionName=(null) Flags=MAINT,IGNORE_JOBS,SPEC_NODES TRES=cpu=16"
        " Users=root Groups=(null) Accounts=(null) Licenses=(null) State=INACTIVE BurstBuffer=(null) Watts=n/a\n"
    )
    (result,) = cluster_info.reservations(slurm(text))
    assert (result.name, result.maintenance, result.nodes, result.end - result.start) == ("maint", True, 4, 7200)
    assert cluster_info.reservations(slurm("No reservations in the system\n")) == []


def test_limits_in_use() -> None:
    texts = {
        "user": "lab\n",
        "assoc": "high|3||cpu=64,gres/gpu=8,node=4\n",
        "qos": "1|cpu=16,mem=1G\n",
        "squeue": "high|lab|2|8|gres/gpu:a100:3\nhigh|other|1|4|N/A\na warning\n",
    }
    requests: list[list[str]] = []

    def run(command: Sequence[str], _: float) -> subprocess.CompletedProcess[str]:
        requests.append(list(command))
        return subprocess.CompletedProcess(command, 0, texts[command[0] if command[0] == "squeue" else command[4]], "")

    results = [
        (limit.owner, limit.name, limit.unit, limit.most, limit.used)
        for limit in cluster_info.limits(Slurm(run), "ada", None, None)
    ]
    assert results == [
        ("account lab", "MaxJobs", "job", 3, 1),
        ("account lab", "GrpTRES", "cpu", 64, 8),
        ("account lab", "GrpTRES", "gres/gpu", 8, 6),
        ("account lab", "GrpTRES", "node", 4, 2),
        ("QoS high", "MaxJobsPU", "job", 1, 2),
        ("QoS high", "MaxTRESPU", "cpu", 16, 12),
    ]
    assert not [command for command in requests if "assoc_mgr" in command], "it kills a controller without accounting"
    with pytest.raises(BackendError, match="has no user ada"):
        cluster_info.limits(slurm(""), "ada", None, None)


@pytest.mark.parametrize(
    ("duration", "minutes"),
    [
        ("00:10:00", 10),
        ("1-00:00:00", 1440),
        ("2-12", 3600),
        ("30", 30),
        ("5:30", 5.5),
        ("UNLIMITED", None),
        ("INFINITE", None),
        ("", None),
        ("soon", None),
    ],
)
def test_durations(duration: str, minutes: float | None) -> None:
    assert minutes_of(duration) == minutes


@pytest.mark.parametrize(
    "ask", [cluster_info.partitions, cluster_info.reservations, lambda s: cluster_info.nodes(s, "main"), cluster_info.settings]
)
def test_what_cannot_be_read_is_nothing(ask: Callable[[Slurm], Any]) -> None:
    assert not ask(slurm("some words\nof a site's wrapper | with | bars\n"))


def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_command(["sleep", "60"], 0.1)
    done = run_command(["sh", "-c", "echo said; echo complained >&2; exit 3"], 10)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said\n", "complained\n")

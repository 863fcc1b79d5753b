"""Explanation of a waiting job: priority, fair share, who is before it, limits; from recorded output, and on a real cluster."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.config import Resources
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.status.waiting import explain_waiting
from tests.jobs.conftest import shell  # noqa: F401
from tests.jobs.shell import Shell
from tests.patience import until
from tests.slurm.conftest import MakeLab

JOB = (
    "JobId=7 JobName=toy UserId=ann(1001) Priority=4200 Nice=50 Account=lab QOS=small JobState=PENDING Reason={reason}"
    " StartTime=Unknown Partition=gpu NumNodes=2-2 NumCPUs=8 ReqTRES=cpu=8,mem=1G,node=2,gres/gpu=4"
)
ANSWERS = {
    "sprio": "100|3000|50|1000|100|0|0|cpu=20,gres/gpu=30|50\n",
    "sshare": "lab||0.5|0.4|0.5\nlab|ann|0.250000|0.500000|0.120000\n",
    "scontrol show config": "PriorityDecayHalfLife   = 7-00:00:00\n",
    "squeue --states=PENDING": "3|9000|ben|4|Priority|3\n4|4200|ben|1|Resources|4\n7|4200|ann|2|Priority|7\n"
    "8|4200|eve|1|Priority|8\n9|9999|eve|9|Dependency|9\n",
    "squeue --states=RUNNING --partition": "2099-01-01T10:00:00\nNONE\n",
    "squeue --states=RUNNING --user": "small|lab|2|8|gres/gpu:2\n",
    "sacctmgr show assoc": "normal||1|\n",
    "sacctmgr show qos": "|cpu=12,gres/gpu=4\n",
}


def recorded(reason: str, missing: Sequence[str] = ()) -> Slurm:
    """Slurm's commands as they answered, except for some that this cluster lacks."""
    answers = {"scontrol show job": JOB.format(reason=reason), **ANSWERS}

    def run(command: Sequence[str], _: float) -> subprocess.CompletedProcess[str]:
        line = " ".join(word for word in command if word not in ("--noheader", "--parsable2", "--oneliner", "--array"))
        line = re.sub(r"(squeue) (--user=\w+) (--states=\w+)", r"\1 \3 \2", line)
        name = next((name for name in answers if line.startswith(name) and name.split()[0] not in missing), None)
        code = 0 if name else 1
        return subprocess.CompletedProcess(command, code, answers[name] if name else "", "" if name else "not here")

    return Slurm(run)


def lines(slurm: Slurm) -> list[str]:
    waiting = explain_waiting(slurm, "7", Resources(), SlurmProfile(), Path("/nowhere"))
    return [re.sub(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d", "HH:MM", line) for line in waiting.lines]


def test_a_job_that_waits_for_its_turn() -> None:
    assert lines(recorded("Priority")) == [
        "its priority is 4200: fair share 3000, partition 1000, age 100, QoS 100, size 50, TRES 50, nice takes 50",
        "fair share: ann in account lab has used 50.0% of what counts and has a share of 25.0%; the factor is 0.12 of 1; usage"
        " halves every 7 days, so without further runs it is back at the share in about 11 days",
        "2 jobs of partition gpu are before it: 2 of ben (5 nodes); 2 jobs run, the next ends by HH:MM",
    ]


def test_a_job_that_exceeds_limits() -> None:
    assert lines(recorded("QOSMaxCpuPerUserLimit"))[-3:] == [
        "account lab allows 1 job at a time (GrpJobs): 1 in use, and it wants 1",
        "QoS small allows 12 CPUs at a time (MaxTRESPU): 8 in use, and it wants 8",
        "QoS small allows 4 GPUs at a time (MaxTRESPU): 4 in use, and it wants 4",
    ]


def test_what_a_cluster_does_not_answer_is_left_out() -> None:
    assert lines(recorded("Priority", missing=("sprio", "sshare", "sacctmgr"))) == [
        "2 jobs of partition gpu are before it: 2 of ben (5 nodes); 2 jobs run, the next ends by HH:MM"
    ]
    [line] = lines(recorded("Priority", missing=("sprio", "sshare", "sacctmgr", "squeue", "scontrol")))
    assert line == "Slurm does not tell more: scontrol: not here"


@pytest.mark.soak("a database and a cluster of its own")
def test_on_a_cluster_with_accounting(
    make_lab: MakeLab,
    shell: Shell,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Priority, fair share, order and limits of a run behind others; hold, release, and a lower priority."""
    weights = {"PriorityWeightFairshare": "10000", "PriorityWeightAge": "1000", "PriorityCalcPeriod": "1"}
    lab = make_lab(accounting=True, extra={"PriorityType": "priority/multifactor", **weights})
    full = lab.command("sbatch", "--parsable", "--nodes=4", "--exclusive", "--time=20", "--output=/dev/null", "--wrap=sleep 999")
    until(lambda: "RUNNING" in lab.command("squeue", "--noheader", f"--jobs={full.strip()}", "--format=%T"))
    lab.command("sbatch", "--parsable", "--nodes=4", "--time=9", "--output=/dev/null", "--wrap=true")
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"lab": {"backend": "slurm", "partition": "main"}}))
    monkeypatch.setenv("ROPEWALK_CLUSTERS", str(tmp_path / "clusters.yaml"))
    run = shell("submit", "command", "--on", "lab", "resources.nodes=2", "--", "true").splitlines()[-1]

    def why() -> str:
        return " ".join(json.loads(shell("why", run, "--json"))["evidence"])

    assert re.search(r"its priority is \d+.*1 job of partition main is before it.*1 job runs, the next ends by", why())
    assert shell("hold", run).strip() == f"{run} is held: `ropewalk release {run}` lets it start"
    assert "release it with `ropewalk release" in shell("why", run)
    shell("release", run)
    until(lambda: "JobHeld" not in shell("why", run))
    shell("priority", run, "100")
    until(lambda: "nice takes 100" in why())  # sprio leaves a job out while its priority is worked out anew

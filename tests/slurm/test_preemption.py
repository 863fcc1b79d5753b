"""Requeueing of preempted jobs by Slurm or by us, parsed from the output of simulated commands."""

import subprocess
from collections.abc import Sequence

import pytest

from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.runtime.coordinator import slurm_requeues

JOB = "JobId=5 JobState=RUNNING Partition=main QOS=low PreemptTime=2026-01-01T10:00:00 Requeue=1 Restarts=0 BatchFlag=1 Reboot=0"
CONFIG = "PreemptMode = REQUEUE\nPreemptType = preempt/partition_prio\nMaxBatchRequeue = 5\n"
BY_QOS = CONFIG.replace("partition_prio", "qos")
PARTITIONS = "PartitionName=other PreemptMode=CANCEL\nPartitionName=main PreemptMode=GANG,REQUEUE\n"


def ask(job: str = JOB, config: str = CONFIG, partitions: str = PARTITIONS, qos: str | None = "cluster") -> bool:
    def run(command: Sequence[str], _: float) -> subprocess.CompletedProcess[str]:
        if command[0] == "sacctmgr":
            return subprocess.CompletedProcess(command, qos is None, f"{qos}\n", "no accounting")
        texts = {"job": job, "config": config, "partition": partitions}
        return subprocess.CompletedProcess(command, 0, next(text for word, text in texts.items() if word in command), "")

    return slurm_requeues(Slurm(run), "5")


def test_a_preempted_job_that_slurm_requeues() -> None:
    assert ask()
    assert ask(job=JOB.replace("BatchFlag=1", "BatchFlag=3"))
    assert ask(config=CONFIG.replace("MaxBatchRequeue = 5\n", "")), "an old Slurm tells no limit; it has the same"
    assert ask(config=BY_QOS, partitions="")
    assert ask(config=BY_QOS.replace("= REQUEUE", "= CANCEL"), qos="requeue")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("PreemptTime=2026-01-01T10:00:00", "PreemptTime=None"),
        ("JobState=RUNNING", "JobState=COMPLETING"),
        ("Requeue=1", "Requeue=0"),
        ("Partition=main", "Partition=other"),
        ("BatchFlag=1", "BatchFlag=4"),
        (" BatchFlag=1", ""),
    ],
)
def test_a_job_that_requeues_itself(before: str, after: str) -> None:
    assert not ask(job=JOB.replace(before, after))


def test_in_doubt_it_requeues_itself() -> None:
    assert not ask(config=CONFIG.replace("partition_prio", "none"))
    assert not ask(config=BY_QOS, qos="cancel")
    assert not ask(config=BY_QOS, qos=None)
    assert not ask(config=CONFIG.replace("Requeue = 5", "Requeue = many"))

"""Number of runs that one submission may have: the size of a job array, and limits on the jobs in the queue."""

import os
import pwd
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.slurm.cluster_info import Limit, accounting_rows, used_partitions
from ropewalk.slurm.commands import Slurm
from ropewalk.slurm.job_lookup import STATES

DEFAULT_ARRAY_SIZE = "1001"  # Slurm's default of MaxArraySize
PER_USER, PER_ACCOUNT, GROUP = "MaxSubmitJobsPU", "MaxSubmitJobsPA", "GrpSubmitJobs"  # limits of a QoS
QUEUE_FORMAT = "%T|%q|%a|%u|%P"


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A line of squeue: the fields that decide which limits a job counts against."""

    state: str
    qos: str
    account: str
    user: str
    partition: str


def array_size(settings: Mapping[str, str]) -> int:
    """Return the number of elements that a job array may have."""
    sizes = [settings.get("MaxArraySize", DEFAULT_ARRAY_SIZE)]
    sizes += re.findall(r"\bmax_array_tasks=(\d+)", settings.get("SchedulerParameters", ""))
    return max(1, min(map(int, sizes)))  # 0: the cluster has no arrays


def refuse_excess(slurm: Slurm, settings: Mapping[str, str], options: Mapping[str, object], runs: int) -> None:
    """Raise ConfigError if Slurm would not accept `runs` more jobs with a profile's sbatch `options`."""
    limits = _limits(slurm, settings, options)
    tightest = min(limits, key=lambda limit: limit.most - limit.used, default=None)
    if tightest is None or (room := max(0, tightest.most - tightest.used)) >= runs:
        return
    remedy = f"submit {room:,} at most, and the others later" if room else "submit again when some of them have ended"
    raise ConfigError(
        f"{runs:,} runs are too many at once: {tightest.owner} allows {tightest.most:,} jobs ({tightest.name}) and has "
        f"{tightest.used:,}, so {room:,} more fit; {remedy}"
    )


def _limits(slurm: Slurm, settings: Mapping[str, str], options: Mapping[str, object]) -> list[Limit]:
    command = ("squeue", "--noheader", "--all", "--array", "--states=all", f"--format={QUEUE_FORMAT}")
    rows = [line.split("|") for line in slurm.ask(*command).splitlines()]
    jobs = [QueuedJob(state=row[0], qos=row[1], account=row[2], user=row[3], partition=row[4]) for row in rows if len(row) == 5]
    limits = []
    if most := re.match(r"\d+", settings.get("MaxJobCount", "")):
        # beyond it sbatch waits instead of failing; ended jobs count until the controller forgets them
        limits.append(Limit(owner="the cluster", name="MaxJobCount", unit="job", most=int(most[0]), used=len(jobs)))
    if "limits" in settings.get("AccountingStorageEnforce", ""):
        active = [job for job in jobs if job.state not in STATES or not STATES[job.state].final]
        with suppress(BackendError):  # accounting does not answer: sbatch decides
            limits += _accounting_limits(slurm, settings.get("ClusterName", ""), options, active)
    return limits


def _accounting_limits(slurm: Slurm, cluster: str, options: Mapping[str, object], jobs: Sequence[QueuedJob]) -> list[Limit]:
    """Return the limits of the QoS and of the accounts: for each kind that of the first of partition's QoS, QoS, account."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    account = _option("account", options) or accounting_rows(slurm, "user", user, "DefaultAccount")[0][0]
    association = (f"cluster={cluster}", f"account={account}", f"user={user}")
    default_qos, most_of_user = accounting_rows(slurm, "assoc", *association, "DefaultQOS,MaxSubmitJobs")[0]
    accounts = accounting_rows(slurm, "assoc", f"cluster={cluster}", "user=", f"Account,ParentName,{GROUP}")
    columns = ("Name", "Flags", PER_USER, PER_ACCOUNT, GROUP)
    all_qos = {row[0]: dict(zip(columns, row, strict=True)) for row in accounting_rows(slurm, "qos", ",".join(columns))}
    qos = _option("qos", options) or default_qos or "normal"
    kinds: dict[str, Callable[[QueuedJob], bool]] = {
        PER_USER: lambda job: job.user == user,
        PER_ACCOUNT: lambda job: job.account == account,
        GROUP: lambda _: True,
    }
    limits = []
    for partition in used_partitions(slurm, _option("partition", options)):
        order = [qos, partition.qos] if "OverPartQOS" in all_qos.get(qos, {}).get("Flags", "") else [partition.qos, qos]
        for kind, is_counted in kinds.items():
            name = next((name for name in order if all_qos.get(name, {}).get(kind)), None)
            if name is not None:
                in_partition = partition.name if name == partition.qos else ""
                used = sum(is_counted(job) and (job.qos == name or job.partition == in_partition) for job in jobs)
                limits.append(Limit(owner=f"QoS {name}", name=kind, unit="job", most=int(all_qos[name][kind]), used=used))
            elif kind == PER_USER and most_of_user:
                used = sum((job.user, job.account) == (user, account) for job in jobs)
                owner = f"{user}'s account {account}"
                limits.append(Limit(owner=owner, name="MaxSubmitJobs", unit="job", most=int(most_of_user), used=used))
            elif kind == GROUP:
                limits += _group_limits(accounts, account, jobs)
    return limits


def _group_limits(rows: Sequence[Sequence[str]], account: str, jobs: Sequence[QueuedJob]) -> list[Limit]:
    """Return the limits of an account and of those above it, which include the jobs of the accounts below them."""
    parents = {name: parent for name, parent, _ in rows}

    def lineage(name: str) -> list[str]:
        return [name, *lineage(parents[name])] if name in parents else []

    counts = [lineage(job.account) for job in jobs]
    return [
        Limit(owner=f"account {name}", name=GROUP, unit="job", most=int(most), used=sum(name in names for names in counts))
        for name, _, most in rows
        if most and name in lineage(account)
    ]


def _option(name: str, options: Mapping[str, object]) -> str | None:
    value = options.get(name) or os.environ.get(f"SBATCH_{name.upper()}")
    return str(value) if value else None

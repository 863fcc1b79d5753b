"""The checks of `doctor` for a Slurm cluster, each with its remedy. A warning does not fail the check."""

import os
import shutil
from collections.abc import Callable
from getpass import getuser
from pathlib import Path

from ropewalk.cluster.backends.base import Check
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.run.file_systems import mount_of
from ropewalk.slurm import cluster_info
from ropewalk.slurm.commands import QUESTION_SECONDS, Slurm
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.status.cores import cores_advice, cores_per_gpu

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
GRACE_SECONDS = float(Resources().grace_seconds)  # default time for a run to save and exit
SHORT_MEMORY_SECONDS = 60  # with a shorter MinJobAge the end of a job may go unnoticed
SHARED = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse", "cifs", "glusterfs", "fuse.glusterfs", "afs", "9p"}
SHARED |= {"panfs", "pvfs2", "orangefs", "wekafs", "virtiofs", "fuse.juicefs", "fuse.sshfs", "quobyte", "daos", "fuse.daos"}
RUNTIMES = {"charliecloud": "ch-run", "pyxis": "enroot"}


def checks(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    """Check commands, controller, partition, settings, accounting, runs directory and container.

    Checks that need the cluster are left out if the controller does not answer.
    """
    commands = _commands(slurm)
    here = [*_runs(profile), *_container(profile)]
    if not commands.ok:
        return [commands, *here]
    try:
        controller = Check(name="controller", ok=True, detail=slurm.ping())
    except BackendError as error:
        detail = f"{error}; check $SLURM_CONF and the network; waiting and running jobs are not affected"
        return [commands, Check(name="controller", ok=False, detail=detail), *here]
    return [commands, controller, *_cluster(slurm, profile), *here]


def _cluster(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    lines: dict[str, Callable[[], list[Check]]] = {
        "partition": lambda: _partition(slurm, profile),
        "settings": lambda: _settings(slurm, profile),
        "cores": lambda: _cores(slurm, profile),
        "accounting": lambda: _accounting(slurm, profile),
    }
    results = []
    for name, look in lines.items():
        try:
            results += look()
        except BackendError as error:
            results.append(Check(name=name, ok=False, detail=str(error)))
    return results


def _commands(slurm: Slurm) -> Check:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        remedy = "install Slurm's client commands, or use a login node; `ropewalk lab slurm up` starts a test cluster"
        return Check(name="slurm", ok=False, detail=f"{', '.join(missing)} not found: {remedy}")
    try:
        return Check(name="slurm", ok=True, detail=slurm.ask("scontrol", "--version", seconds=QUESTION_SECONDS).strip())
    except BackendError as error:
        return Check(name="slurm", ok=False, detail=f"{error}")


def _partition(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    by_name = {partition.name: partition for partition in cluster_info.partitions(slurm)}
    default = [partition.name for partition in by_name.values() if partition.default]
    wanted = profile.partition.split(",") if profile.partition else default
    if not wanted:
        return [Check(name="partition", ok=False, detail=f"no default partition; set partition to one of {', '.join(by_name)}")]
    results = []
    for name in wanted:
        if name not in by_name:
            detail = f"{name!r} does not exist; the cluster has {', '.join(by_name)}"
        else:
            detail = _allowance(by_name[name], cluster_info.nodes(slurm, name))
        is_up = name in by_name and by_name[name].state == "UP"
        results.append(Check(name="partition", ok=is_up, detail=detail))
    return results


def _allowance(partition: cluster_info.Partition, nodes: list[cluster_info.Node]) -> str:
    usable, free = sum(node.usable for node in nodes), sum(node.free for node in nodes)
    most = f"{partition.max_nodes} nodes" if partition.max_nodes is not None else "any number of nodes"
    limit = f"{partition.max_minutes:g} minutes" if partition.max_minutes is not None else "any time"
    state = "" if partition.state == "UP" else f" is {partition.state}, choose another;"
    return f"{partition.name}{state} allows {most} for {limit}; of {len(nodes)} nodes {usable} are up and {free} free"


def _settings(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    settings = cluster_info.settings(slurm)
    requeue = settings.get("JobRequeue") != "0"
    # the job script passes --requeue itself; the setting is only the default
    note = "" if requeue else "; off by default on this cluster, but the job script requests it"
    memory = float(settings.get("MinJobAge", "300 sec").split()[0])
    end = f"ended jobs are remembered for {memory:g} s (MinJobAge)"
    if memory < SHORT_MEMORY_SECONDS:
        end = f"warning: {end}; the end of a killed job may go unnoticed: ask the administrators for 300 s"
    return [
        Check(name="requeue", ok=True, detail=f"jobs can be requeued{note}"),
        _preemption(slurm, profile, settings),
        _kill_wait(settings),
        Check(name="memory", ok=True, detail=end),
    ]


def _preemption(slurm: Slurm, profile: SlurmProfile, settings: dict[str, str]) -> Check:
    kind = settings.get("PreemptType", "preempt/none").removeprefix("preempt/")
    used = cluster_info.used_partitions(slurm, profile.partition)
    takes = [p for p in used if "OFF" not in p.preempt_mode]
    if kind in {"none", "(null)", ""} or (kind == "partition_prio" and not takes):
        return Check(name="preemption", ok=True, detail="none on this cluster")
    grace = min((partition.grace_seconds for partition in takes or used), default=0.0)
    sends_signal = "send_user_signal" in settings.get("PreemptParameters", "")
    how = "with the signal that the run requested" if sends_signal else "with SIGTERM to its steps"
    detail = f"by {kind}, {grace:g} s notice (GraceTime), {how}"
    if kind == "qos":
        detail = f"by QoS; its GraceTime is the notice: sacctmgr show qos format=Name,GraceTime; a run needs {GRACE_SECONDS:g} s"
        return Check(name="preemption", ok=True, detail=detail)
    if grace >= GRACE_SECONDS:
        return Check(name="preemption", ok=True, detail=detail)
    remedy = f"less than the {GRACE_SECONDS:g} s of resources.grace_seconds: steps that are not saved by then are repeated;"
    remedy += " checkpoint more often (checkpoint.every_steps), or ask the administrators for a longer GraceTime"
    remedy += "" if sends_signal else " and PreemptParameters=send_user_signal"
    return Check(name="preemption", ok=True, detail=f"warning: {detail}; {remedy}")


def _cores(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    per_gpu = cores_per_gpu(slurm, profile, cluster_info.used_partitions(slurm, profile.partition))
    return [Check(name="cores", ok=True, detail=f"warning: where {cores_advice(per_gpu, 1)}")] if per_gpu is not None else []


def _kill_wait(settings: dict[str, str]) -> Check:
    seconds = settings.get("KillWait", "30 sec").split()[0]
    detail = f"{seconds} s from SIGTERM to SIGKILL (KillWait); at its time limit a run has resources.grace_seconds"
    return Check(name="end of a job", ok=True, detail=detail)


def _accounting(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    nothing = [Check(name="accounting", ok=True, detail="none; not required: runs and the controller record how jobs ended")]
    try:
        arguments = ["--noheader", "--parsable2", "show", "assoc", f"user={getuser()}", "format=Account,QOS"]
        text = slurm.ask("sacctmgr", *arguments, seconds=QUESTION_SECONDS)
    except (BackendError, KeyError, OSError):
        return nothing
    rows = [line.split("|") for line in text.splitlines() if "|" in line]
    if not rows:
        return [Check(name="accounting", ok=True, detail=f"available; it has no account of {getuser()}")]
    accounts = sorted({account for account, _ in rows})
    allowed = sorted({name for account, names in rows if profile.account in {None, account} for name in names.split(",") if name})
    results = [Check(name="accounting", ok=True, detail=f"available; accounts {', '.join(accounts)}")]
    if profile.account and profile.account not in accounts:
        detail = f"{profile.account!r} is not one of your accounts: {', '.join(accounts)}"
        results.append(Check(name="account", ok=False, detail=detail))
    elif profile.qos and profile.qos not in allowed:
        results.append(Check(name="qos", ok=False, detail=f"{profile.qos!r} is not one of your QoS: {', '.join(allowed)}"))
    return results


def _runs(profile: SlurmProfile) -> list[Check]:
    if not profile.runs:
        detail = "not set: runs go to $ROPEWALK_RUNS or ./runs, which must be on a file system that all nodes share"
        return [Check(name="runs of this cluster", ok=True, detail=detail)]
    root = Path(profile.runs).expanduser()
    if not root.exists() and os.access(root.parent, os.W_OK):
        return [Check(name="runs of this cluster", ok=True, detail=f"{root}: the first run creates it")]
    if not root.is_dir():
        return [Check(name="runs of this cluster", ok=False, detail=f"{root}: no such directory; create it, or change `runs`")]
    if not os.access(root, os.W_OK):
        return [Check(name="runs of this cluster", ok=False, detail=f"{root}: not writable; choose another in `runs`")]
    kind = mount_of(root).kind or "unknown"
    detail = f"{root} on {kind}"
    if kind in {"tmpfs", "ramfs", "devtmpfs"}:
        detail += ": in this machine's memory, invisible to the nodes and lost at a restart; choose a shared file system"
        return [Check(name="runs of this cluster", ok=False, detail=detail)]
    if kind not in SHARED:
        detail = f"warning: {detail}, which does not look like a network file system; all nodes must see the same files there"
    return [Check(name="runs of this cluster", ok=True, detail=detail)]


def _container(profile: SlurmProfile) -> list[Check]:
    if profile.container is None:
        return []
    command = RUNTIMES.get(profile.container.runtime, profile.container.runtime)
    hint = f"warning: {command} not found on this machine; the nodes may still have it (module load in `setup`?)"
    return [Check(name="container", ok=True, detail=shutil.which(command) or hint)]

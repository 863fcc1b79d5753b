"""The lines of `doctor` for a Slurm cluster, each with its remedy. A warning does not make the cluster unfit."""

import os
import shutil
from collections.abc import Callable
from getpass import getuser
from pathlib import Path

from ropewalk.cluster.backends.base import Check
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.slurm import cluster_info
from ropewalk.slurm.commands import QUESTION_SECONDS, Slurm
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.status.cores import cores_a_gpu, few_cores

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
GRACE_SECONDS = float(Resources().grace_seconds)  # what a run needs to save and leave, unless it says otherwise
SHORT_MEMORY_SECONDS = 60  # a job that ended is forgotten so soon that its end may never be seen
SHARED = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse", "cifs", "glusterfs", "fuse.glusterfs", "afs", "9p"}
SHARED |= {"panfs", "pvfs2", "orangefs", "wekafs", "virtiofs", "fuse.juicefs", "fuse.sshfs", "quobyte", "daos", "fuse.daos"}
RUNTIMES = {"charliecloud": "ch-run", "pyxis": "enroot"}


def checks(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    """Check commands, controller, partition, settings, accounting, runs and container; the cluster only if it answers."""
    commands = _commands(slurm)
    here = [*_runs(profile), *_container(profile)]
    if not commands.ok:
        return [commands, *here]
    try:
        controller = Check(name="controller", ok=True, detail=slurm.ping())
    except BackendError as error:
        detail = f"{error}; is $SLURM_CONF right, is the network? what waits and runs goes on without it"
        return [commands, Check(name="controller", ok=False, detail=detail), *here]
    return [commands, controller, *_cluster(slurm, profile), *here]


def _cluster(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    lines: dict[str, Callable[[], list[Check]]] = {
        "partition": lambda: _partition(slurm, profile),
        "settings": lambda: _settings(slurm, profile),
        "cores": lambda: _cores(slurm, profile),
        "accounting": lambda: _accounting(slurm, profile),
    }
    found = []
    for name, look in lines.items():
        try:
            found += look()
        except BackendError as error:
            found.append(Check(name=name, ok=False, detail=str(error)))
    return found


def _commands(slurm: Slurm) -> Check:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        remedy = "install Slurm's client commands, or go to a login node; `ropewalk lab slurm up` starts a test cluster"
        return Check(name="slurm", ok=False, detail=f"{', '.join(missing)} not found: {remedy}")
    try:
        return Check(name="slurm", ok=True, detail=slurm.ask("scontrol", "--version", seconds=QUESTION_SECONDS).strip())
    except BackendError as error:
        return Check(name="slurm", ok=False, detail=f"{error}; $SLURM_CONF names the cluster's slurm.conf")


def _partition(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    known = {partition.name: partition for partition in cluster_info.partitions(slurm)}
    default = [partition.name for partition in known.values() if partition.default]
    wanted = profile.partition.split(",") if profile.partition else default
    if not wanted:
        return [Check(name="partition", ok=False, detail=f"there is no default; set partition to one of {', '.join(known)}")]
    found = []
    for name in wanted:
        if name not in known:
            detail = f"{name!r} does not exist; there are {', '.join(known)}"
        else:
            detail = _allowance(known[name], cluster_info.nodes(slurm, name))
        well = name in known and known[name].state == "UP"
        found.append(Check(name="partition", ok=well, detail=detail))
    return found


def _allowance(partition: cluster_info.Partition, nodes: list[cluster_info.Node]) -> str:
    usable, free = sum(node.usable for node in nodes), sum(node.free for node in nodes)
    most = f"{partition.max_nodes} nodes" if partition.max_nodes is not None else "any number of nodes"
    limit = f"{partition.max_minutes:g} minutes" if partition.max_minutes is not None else "any time"
    state = "" if partition.state == "UP" else f" is {partition.state}, choose another;"
    return f"{partition.name}{state} allows {most} for {limit}; of {len(nodes)} nodes {usable} are up and {free} free"


def _settings(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    settings = cluster_info.settings(slurm)
    requeue = settings.get("JobRequeue") != "0"
    # our scripts say --requeue themselves; the setting is only the default
    note = "" if requeue else "; the default is off here, and the job script asks for it"
    memory = float(settings.get("MinJobAge", "300 sec").split()[0])
    end = f"of jobs that ended is kept for {memory:g} s (MinJobAge)"
    if memory < SHORT_MEMORY_SECONDS:
        end = f"warning: {end}; a job that is killed before it can write may vanish unseen: ask the site for 300 s"
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
        return Check(name="preemption", ok=True, detail="none here")
    grace = min((partition.grace_seconds for partition in takes or used), default=0.0)
    told = "send_user_signal" in settings.get("PreemptParameters", "")
    how = "by the signal that the run asked for" if told else "by SIGTERM to its steps"
    detail = f"by {kind}, {grace:g} s of notice (GraceTime), {how}"
    if kind == "qos":
        detail = f"by QoS; its GraceTime is the notice: sacctmgr show qos format=Name,GraceTime; a run needs {GRACE_SECONDS:g} s"
        return Check(name="preemption", ok=True, detail=detail)
    if grace >= GRACE_SECONDS:
        return Check(name="preemption", ok=True, detail=detail)
    remedy = f"less than the {GRACE_SECONDS:g} s of resources.grace_seconds: what is not saved by then is done again;"
    remedy += " checkpoint more often (checkpoint.every_steps), or ask the site for a longer GraceTime"
    remedy += "" if told else " and PreemptParameters=send_user_signal"
    return Check(name="preemption", ok=True, detail=f"warning: {detail}; {remedy}")


def _cores(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    a_gpu = cores_a_gpu(slurm, profile, cluster_info.used_partitions(slurm, profile.partition))
    return [Check(name="cores", ok=True, detail=f"warning: where {few_cores(a_gpu, 1)}")] if a_gpu is not None else []


def _kill_wait(settings: dict[str, str]) -> Check:
    seconds = settings.get("KillWait", "30 sec").split()[0]
    detail = f"{seconds} s from SIGTERM to SIGKILL (KillWait); before its time limit a run has resources.grace_seconds"
    return Check(name="end of a job", ok=True, detail=detail)


def _accounting(slurm: Slurm, profile: SlurmProfile) -> list[Check]:
    nothing = [Check(name="accounting", ok=True, detail="none; runs' own outcome files and the controller's memory are enough")]
    try:
        words = ["--noheader", "--parsable2", "show", "assoc", f"user={getuser()}", "format=Account,QOS"]
        text = slurm.ask("sacctmgr", *words, seconds=QUESTION_SECONDS)
    except (BackendError, KeyError, OSError):
        return nothing
    rows = [line.split("|") for line in text.splitlines() if "|" in line]
    if not rows:
        return [Check(name="accounting", ok=True, detail=f"answers, and knows no account of {getuser()}")]
    accounts = sorted({account for account, _ in rows})
    allowed = sorted({name for account, names in rows if profile.account in {None, account} for name in names.split(",") if name})
    found = [Check(name="accounting", ok=True, detail=f"answers; accounts {', '.join(accounts)}")]
    if profile.account and profile.account not in accounts:
        found.append(Check(name="account", ok=False, detail=f"{profile.account!r} is not yours; yours are {', '.join(accounts)}"))
    elif profile.qos and profile.qos not in allowed:
        found.append(Check(name="qos", ok=False, detail=f"{profile.qos!r} is not yours; yours are {', '.join(allowed)}"))
    return found


def _runs(profile: SlurmProfile) -> list[Check]:
    if not profile.runs:
        detail = "not set: runs go to $ROPEWALK_RUNS or ./runs, which must lie on a file system that all nodes share"
        return [Check(name="runs of this cluster", ok=True, detail=detail)]
    root = Path(profile.runs).expanduser()
    if not root.exists() and os.access(root.parent, os.W_OK):
        return [Check(name="runs of this cluster", ok=True, detail=f"{root}: will be made by the first run")]
    if not root.is_dir():
        return [Check(name="runs of this cluster", ok=False, detail=f"{root}: no such directory; make it, or change `runs`")]
    if not os.access(root, os.W_OK):
        return [Check(name="runs of this cluster", ok=False, detail=f"{root}: not writable; choose another in `runs`")]
    kind = file_system(root)
    detail = f"{root} on {kind}"
    if kind in {"tmpfs", "ramfs", "devtmpfs"}:
        detail += ": in this machine's memory, which no node sees and a restart empties; choose a shared file system"
        return [Check(name="runs of this cluster", ok=False, detail=detail)]
    if kind not in SHARED:
        detail = f"warning: {detail}, which does not look like a network file system; all nodes must see the same files there"
    return [Check(name="runs of this cluster", ok=True, detail=detail)]


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of file system that a path lies on, such as nfs4; `unknown` where the kernel does not tell."""
    try:
        rows = [line.split()[:3] for line in mounts.read_text().splitlines()]
    except OSError:
        return "unknown"
    place = path.resolve()
    over = [(len(target), kind) for _, target, kind in rows if place.is_relative_to(target.replace("\\040", " "))]
    # of two mounts at one place the later one is seen
    return max(enumerate(over), key=lambda item: (item[1][0], item[0]))[1][1] if over else "unknown"


def _container(profile: SlurmProfile) -> list[Check]:
    if profile.container is None:
        return []
    command = RUNTIMES.get(profile.container.runtime, profile.container.runtime)
    found = shutil.which(command)
    detail = found or f"warning: {command} is not on this machine; fine if it is on the nodes (module load in `setup`?)"
    return [Check(name="container", ok=True, detail=detail)]

"""Settings of a test cluster, its ports and names on the machine, and the text of its configuration files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ropewalk.slurm.lab.processes import MARK

CLUSTER = "lab"
PORTS_FROM = 17100  # below the ephemeral ports, which outgoing connections use
PORTS_PER_LAB = 50
MOST_LABS = 26
MOST_NODES = PORTS_PER_LAB - 10


@dataclass(frozen=True, kw_only=True)
class LabSettings:
    """Settings that tests vary. Times in seconds."""

    nodes: int = 4
    cpus: int = 4  # per node; may exceed the machine's
    memory_mib: int = 4000  # per node; not enforced
    gpus: int = 0  # per node; counted by Slurm, without devices
    user_signal: bool = True  # preemption starts with the signal of the job's --signal; else with SIGTERM to its steps
    grace_seconds: int = 5  # from the first signal of a preemption to the end of the job
    kill_wait_seconds: int = 5
    node_timeout_seconds: int = 20  # without an answer for this long a node is down
    min_job_age_seconds: int = 3600  # squeue remembers ended jobs for this long; without accounting nothing else does
    refuse_at_once: bool = True  # sbatch refuses a job that exceeds a partition's limits; else the job stays pending
    slow_requeue: bool = False  # let a requeued job wait 121 s, as an unmodified Slurm does
    users: Sequence[str] = ()  # further users who may submit jobs
    extra: Mapping[str, str] = field(default_factory=dict)  # further keys of slurm.conf


@dataclass(frozen=True, kw_only=True)
class LabLocation:
    """Folder of a lab, and the block of ports, addresses and names that no other lab uses."""

    folder: Path
    block: int  # 0 up to MOST_LABS
    host: str  # this machine's short name
    user: str  # runs the daemons
    named: bool  # the node names resolve; else the addresses serve as names

    @property
    def port(self) -> int:
        """First port of the block, for the controller. Accounting uses the second, nodes use the tenth and following."""
        return PORTS_FROM + self.block * PORTS_PER_LAB

    @property
    def ports(self) -> range:
        return range(self.port, self.port + PORTS_PER_LAB)

    def node_port(self, node: int) -> int:
        """Return the port of a node's slurmd; nodes count from 1."""
        return self.port + 9 + node

    @property
    def munge_socket(self) -> Path:
        return self.folder / "run/munge.sock"

    def address(self, node: int) -> str:
        """Return a node's loopback address; nodes count from 1."""
        return f"127.0.{self.block + 1}.{node}"

    def name(self, node: int) -> str:
        """Return a node's name: n1 in the first lab, nb1 in the second."""
        if not self.named:
            return self.address(node)  # Slurm accepts addresses as names, including 127.0.1.[1-4]
        return f"n{chr(ord('a') + self.block) if self.block else ''}{node}"


def names(location: LabLocation, settings: LabSettings) -> list[str]:
    """Return the names of all nodes, in order."""
    return [location.name(node) for node in range(1, settings.nodes + 1)]


def slurm_conf(location: LabLocation, settings: LabSettings) -> str:
    """Return the text of slurm.conf."""
    keys = {
        **_daemons(location),
        **_behaviour(settings),
        **({} if settings.slow_requeue else dict.fromkeys(("EpilogSlurmctld", "Epilog"), str(location.folder / "etc/hurry.sh"))),
        **({"GresTypes": "gpu"} if settings.gpus else {}),
        **settings.extra,
    }
    return (
        "\n".join([f"{key}={value}" for key, value in keys.items()] + _nodes(location, settings) + _partitions(settings)) + "\n"
    )


def gres_conf(folder: Path, settings: LabSettings) -> str:
    """Return the text of gres.conf, whose GPUs are links to /dev/null."""
    return f"Name=gpu File={folder}/gpu[0-{settings.gpus - 1}]\n" if settings.gpus else ""


def _daemons(location: LabLocation) -> dict[str, str]:
    folder = location.folder
    return {
        "ClusterName": CLUSTER,
        "SlurmctldHost": f"{location.host}(127.0.0.1)",
        "SlurmctldPort": str(location.port),
        "SlurmUser": location.user,
        "SlurmdUser": location.user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={location.munge_socket}",
        "CredType": "cred/munge",
        "StateSaveLocation": str(folder / "state"),
        "SlurmdSpoolDir": str(folder / "spool/%n"),
        "SlurmctldPidFile": str(folder / "run/slurmctld.pid"),
        "SlurmdPidFile": str(folder / "run/slurmd-%n.pid"),
        "SlurmctldLogFile": str(folder / "log/slurmctld.log"),
        "SlurmdLogFile": str(folder / "log/slurmd-%n.log"),
    }


def _behaviour(settings: LabSettings) -> dict[str, str]:
    return {
        # no cgroups: they need root, and a machine that permits them
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "MpiDefault": "none",
        # bind the controller to its own address; NoInAddrAny would bind srun's sockets too, and steps could not reach them
        "CommunicationParameters": "NoCtldInAddrAny",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",  # use the node sizes of this file, not the machine's
        "ReturnToService": "2",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        **({"PreemptParameters": "send_user_signal"} if settings.user_signal else {}),
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0",
        "JobRequeue": "1",
        "MinJobAge": str(settings.min_job_age_seconds),
        "MaxArraySize": "10001",
        "EnforcePartLimits": "ALL" if settings.refuse_at_once else "NO",
        "SlurmdTimeout": str(settings.node_timeout_seconds),
        "KillWait": str(settings.kill_wait_seconds),
        # detect a dead node sooner
        "MessageTimeout": "5",
        "TCPTimeout": "1",
    }


def _nodes(location: LabLocation, settings: LabSettings) -> list[str]:
    gres = f" Gres=gpu:{settings.gpus}" if settings.gpus else ""
    resources = f"CPUs={settings.cpus} RealMemory={settings.memory_mib}{gres} State=UNKNOWN"
    addresses = ((location.name(node), location.address(node), location.node_port(node)) for node in range(1, settings.nodes + 1))
    return [
        f"NodeName={name} NodeHostname={location.host} NodeAddr={address} Port={port} {resources}"
        for name, address, port in addresses
    ]


def _partitions(settings: LabSettings) -> list[str]:
    grace = settings.grace_seconds
    return [
        f"PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=REQUEUE GraceTime={grace}",
        "PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF",
        "PartitionName=short Nodes=ALL MaxTime=00:10:00 MaxNodes=2 PriorityTier=10 PreemptMode=OFF",
    ]


def skip_delay_script(folder: Path, path: str) -> str:
    """Return the script that lets requeued jobs start immediately; the controller and a job's first node run it at its end.

    Slurm lets a requeued job wait as long as a credential is valid (AuthInfo=cred_expire, at least 5 s), plus one second.
    No setting turns that off, but the start time can be changed as soon as the job is pending again. The new start is one
    second later: within the same second the nodes would mistake the new credential for the old one, and the job would fail
    with "credential revoked". Both sides run the script: the controller kills its own when it requeues a preempted job that
    has exited by itself, and the node may be dead.
    """
    return f"""#!/bin/sh
export SLURM_CONF={folder}/etc/slurm.conf PATH={path} {MARK}={folder}:hurry
# only on the job's first node
first=$(echo "$SLURM_JOB_NODELIST" | sed 's/[],-].*//; s/\\[//')
[ "$SLURM_SCRIPT_CONTEXT" != epilog_slurmd ] || [ "$SLURMD_NODENAME" = "$first" ] || exit 0
# Slurm waits for this script, then kills its process group: continue in another process, after it has reported that it runs
[ "$1" = wait ] || {{ setsid --fork "$0" wait </dev/null 2>/dev/null | read -r ready; exit 0; }}
echo ready
exec >/dev/null
for _ in $(seq 600); do
  state=$(squeue --noheader --states=all --jobs="$SLURM_JOB_ID" --format=%T) || state=COMPLETING
  case $state in
    COMPLETING) sleep 0.1 ;;
    PENDING) exec scontrol update jobid="$SLURM_JOB_ID" StartTime=now+1 ;;
    *) exit 0 ;;
  esac
done
"""

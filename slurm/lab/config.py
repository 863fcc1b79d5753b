"""The test cluster's settings, its place on the machine, and the text of its configuration files; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ropewalk.slurm.lab.processes import MARK

CLUSTER = "lab"
PORTS_FROM = 17100  # below the kernel's ephemeral range, so that no outgoing connection sits on one of them
PORTS_PER_LAB = 50
MOST_LABS = 26
MOST_NODES = PORTS_PER_LAB - 10


@dataclass(frozen=True, kw_only=True)
class LabSettings:
    """What a test may want to have different. Times in seconds."""

    nodes: int = 4
    cpus: int = 4  # a node; more than the machine has is fine
    memory_mib: int = 4000  # a node, and no more than a word: nothing enforces it
    user_signal: bool = True  # preemption starts with the job's own --signal; else with SIGTERM to its steps
    grace_seconds: int = 5  # from preemption's first signal to the end
    kill_wait_seconds: int = 5
    node_timeout_seconds: int = 20  # silent for so long, a node is down
    min_job_age_seconds: int = 3600  # how long squeue remembers a job that ended; without accounting nothing else does
    refuse_at_once: bool = True  # what no partition's limits allow is refused by sbatch; else it is pending for ever
    slow_requeue: bool = False  # as Slurm does it: a requeued job waits 121 s
    users: Sequence[str] = ()  # who may submit, besides this user
    extra: Mapping[str, str] = field(default_factory=dict)  # more keys of slurm.conf


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one lab lives: its folder, and the block of ports, addresses and names that no other lab has."""

    folder: Path
    block: int  # 0 up to MOST_LABS
    host: str  # this machine's short name
    user: str
    named: bool  # the nodes' names resolve; else their addresses are their names

    @property
    def port(self) -> int:
        """The first port of the block, the controller's. Accounting has the second, the nodes those from the tenth on."""
        return PORTS_FROM + self.block * PORTS_PER_LAB

    @property
    def ports(self) -> range:
        """All ports of the lab's block."""
        return range(self.port, self.port + PORTS_PER_LAB)

    def node_port(self, node: int) -> int:
        """Where a node's slurmd listens; nodes count from 1."""
        return self.port + 9 + node

    @property
    def munge_socket(self) -> Path:
        """Where this lab's own munged listens."""
        return self.folder / "run/munge.sock"

    def address(self, node: int) -> str:
        """A node's own loopback address; nodes count from 1."""
        return f"127.0.{self.block + 1}.{node}"

    def name(self, node: int) -> str:
        """A node's name: n1 in the first lab, nb1 in the second."""
        if not self.named:
            return self.address(node)  # a legal name to Slurm, also as 127.0.1.[1-4]
        return f"n{chr(ord('a') + self.block) if self.block else ''}{node}"


def names(place: Place, settings: LabSettings) -> list[str]:
    """All nodes' names, in order."""
    return [place.name(node) for node in range(1, settings.nodes + 1)]


def slurm_conf(place: Place, settings: LabSettings) -> str:
    """The text of slurm.conf."""
    keys = {
        **_daemons(place),
        **_behaviour(settings),
        **({} if settings.slow_requeue else dict.fromkeys(("EpilogSlurmctld", "Epilog"), str(place.folder / "etc/hurry.sh"))),
        **settings.extra,
    }
    return "\n".join([f"{key}={value}" for key, value in keys.items()] + _nodes(place, settings) + _partitions(settings)) + "\n"


def _daemons(place: Place) -> dict[str, str]:
    folder = place.folder
    return {
        "ClusterName": CLUSTER,
        "SlurmctldHost": f"{place.host}(127.0.0.1)",
        "SlurmctldPort": str(place.port),
        "SlurmUser": place.user,
        "SlurmdUser": place.user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={place.munge_socket}",
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
        # no cgroups: they need root, and a machine that lets one have them
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "MpiDefault": "none",
        # the controller listens at its own address alone; NoInAddrAny would bind srun's sockets too, where no step finds them
        "CommunicationParameters": "NoCtldInAddrAny",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",  # believe this file, not what the machine has
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
        # a dead node is found out sooner
        "MessageTimeout": "5",
        "TCPTimeout": "1",
    }


def _nodes(place: Place, settings: LabSettings) -> list[str]:
    return [
        f"NodeName={place.name(node)} NodeHostname={place.host} NodeAddr={place.address(node)} Port={place.node_port(node)}"
        f" CPUs={settings.cpus} RealMemory={settings.memory_mib} State=UNKNOWN"
        for node in range(1, settings.nodes + 1)
    ]


def _partitions(settings: LabSettings) -> list[str]:
    grace = settings.grace_seconds
    return [
        f"PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=REQUEUE GraceTime={grace}",
        "PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF",
        "PartitionName=short Nodes=ALL MaxTime=00:10:00 MaxNodes=2 PriorityTier=10 PreemptMode=OFF",
    ]


def skip_delay_script(folder: Path, path: str) -> str:
    """The script that the controller and the job's first node run at a job's end, so that a requeued job starts at once.

    Slurm lets a requeued job wait for as long as a credential lives (AuthInfo=cred_expire, no less than 5 s), plus one.
    No setting turns that off, but the start time may be changed as soon as the job is pending again. To the next second:
    in this one the nodes would take the new credential for the old one, and the job would fail as "credential revoked".
    The controller alone would do, but it kills its script where it requeues a preempted job that has left by itself; the
    node alone would do, but it may be dead.
    """
    return f"""#!/bin/sh
export SLURM_CONF={folder}/etc/slurm.conf PATH={path} {MARK}={folder}:hurry
# of the job's nodes only the first
first=$(echo "$SLURM_JOB_NODELIST" | sed 's/[],-].*//; s/\\[//')
[ "$SLURM_SCRIPT_CONTEXT" != epilog_slurmd ] || [ "$SLURMD_NODENAME" = "$first" ] || exit 0
# Slurm waits for this script, then kills its process group: go on in another, and say so before leaving
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

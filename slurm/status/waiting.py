"""Explanation of a pending job: its priority by parts, fair share, jobs before it, exceeded limits, and what starts sooner."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ropewalk.cluster.backends.base import Waiting
from ropewalk.cluster.config import Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.text import counted
from ropewalk.slurm import cluster_info
from ropewalk.slurm.commands import QUESTION_SECONDS, PlannedStart, Slurm
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.status.start_estimate import UNITS, ClusterQueries, clock
from ropewalk.slurm.times import FOREVER, minutes_of, seconds_of

# sprio's field of a weighted part → its name
PARTS = {
    "%A": "age",
    "%F": "fair share",
    "%J": "size",
    "%P": "partition",
    "%Q": "QoS",
    "%B": "account",
    "%S": "site",
    "%T": "TRES",
}
QUEUE_FORMAT = "%A|%Q|%u|%D|%r|%i"  # id, priority, user, nodes, reason, id with the element of an array
ELIGIBLE = ("Priority", "Resources", "None")  # reasons of jobs that wait for nodes alone
MOST_USERS = 3  # that are named
_LIMIT_WORDS = ("QOS", "Assoc", "Max")  # first parts of reasons that are limits


@dataclass(frozen=True, kw_only=True)
class Share:
    """A line of sshare: fractions of the cluster that a user may use and has used, and the resulting factor."""

    account: str
    share: float
    used: float
    factor: float


def explain_waiting(slurm: Slurm, job: str, resources: Resources, profile: SlurmProfile, script: Path) -> Waiting:
    """Explain why a job is pending. Questions that Slurm does not answer, or not to this user, are left out."""
    try:
        details = slurm.job_details(job)
    except BackendError as error:
        return Waiting(lines=[f"Slurm does not tell more: {error}"])
    lines: list[str] = []
    for question in (_priority, _fair_share, _before, _limits):
        try:
            lines += question(slurm, details)
        except (BackendError, ValueError, KeyError, IndexError):
            continue
    remedy = ""
    if script.is_file() and details.get("Reason") in ELIGIBLE:
        with suppress(BackendError):
            remedy = _sooner(slurm, details, resources, profile, script)
    return Waiting(lines=lines, remedy=remedy)


def priority_parts(slurm: Slurm, job: str) -> dict[str, int]:
    """Return the weighted parts of a pending job's priority by name; `nice` lowers it. Empty without the multifactor plugin."""
    fields = [*PARTS, "%N"]
    text = slurm.ask("sprio", "--noheader", f"--jobs={job}", f"--format={'|'.join(fields)}", seconds=QUESTION_SECONDS)
    values = (text.splitlines() or [""])[0].split("|")
    if len(values) != len(fields):
        return {}
    parts = {name: round(_weight(value)) for name, value in zip([*PARTS.values(), "nice"], values, strict=True)}
    return {name: value for name, value in parts.items() if value}


def _weight(value: str) -> float:
    """Return a number of sprio; TRES is a list such as `cpu=250,mem=10`, and empty without weights."""
    return sum(float(part.rpartition("=")[2]) for part in value.split(",") if part.strip())


def _priority(slurm: Slurm, details: Mapping[str, str]) -> list[str]:
    parts = priority_parts(slurm, details["JobId"])
    total = details.get("Priority", "?")
    if not parts:
        return [f"its priority is {total}"]
    nice = parts.pop("nice", 0)
    phrases = [f"{name} {value}" for name, value in sorted(parts.items(), key=lambda part: -part[1])]
    lowered = [f"nice takes {nice}"] if nice > 0 else [f"nice adds {-nice}"] if nice else []
    return [f"its priority is {total}: {', '.join([*phrases, *lowered])}"]


def shares(slurm: Slurm, user: str) -> list[Share]:
    """Return the shares of a user by account."""
    columns = "Account,User,NormShares,EffectvUsage,FairShare"
    command = ("sshare", "--noheader", "--parsable2", f"--users={user}", f"--format={columns}")
    rows = [line.split("|") for line in slurm.ask(*command, seconds=QUESTION_SECONDS).splitlines()]
    return [
        Share(account=row[0].strip(), share=float(row[2]), used=float(row[3]), factor=float(row[4]))
        for row in rows
        if len(row) == 5 and row[1].strip() == user and all(row[2:])
    ]


def _fair_share(slurm: Slurm, details: Mapping[str, str]) -> list[str]:
    user = details["UserId"].partition("(")[0]
    share = next((each for each in shares(slurm, user) if each.account == details.get("Account")), None)
    if share is None:
        return []
    phrases = (
        f"fair share: {user} in account {share.account} has used {share.used:.1%} of what counts and has a share of"
        f" {share.share:.1%}; the factor is {share.factor:.2f} of 1"
    )
    return [phrases + _recovery(share, cluster_info.settings(slurm).get("PriorityDecayHalfLife", ""))]


def _recovery(share: Share, half_life: str) -> str:
    """Describe when the usage has decayed to the share, if the user runs nothing meanwhile and the others go on."""
    days = (minutes_of(half_life) or 0) / 1440
    if share.used <= share.share or share.share <= 0 or not days:
        return ""
    # u of my usage and v of the others decay alike, and the others' use keeps v: u/(u+v) falls to the share
    ratio = (share.used / max(1e-9, 1 - share.used)) / (share.share / max(1e-9, 1 - share.share))
    needed = days * math.log2(max(1.0, ratio))
    return f"; usage halves every {days:.3g} days, so without further runs it is back at the share in about {needed:.2g} days"


def jobs_before(slurm: Slurm, details: Mapping[str, str]) -> list[list[str]]:
    """Return the pending jobs of a job's partition that are scheduled before it, as rows of QUEUE_FORMAT."""
    partition, mine = details["Partition"], (int(details["Priority"]), -int(details["JobId"]))
    command = ("squeue", "--noheader", "--states=PENDING", "--array", f"--partition={partition}", f"--format={QUEUE_FORMAT}")
    rows = [line.split("|") for line in slurm.ask(*command, seconds=QUESTION_SECONDS).splitlines() if line.count("|") == 5]
    return [row for row in rows if row[4] in ELIGIBLE and (int(row[1]), -int(row[0])) > mine]


def _before(slurm: Slurm, details: Mapping[str, str]) -> list[str]:
    partition, ahead = details["Partition"], jobs_before(slurm, details)
    running = _running(slurm, partition)
    if not ahead:
        return [f"no waiting job of partition {partition} is before it{running}"]
    by_user: dict[str, list[int]] = {}
    for row in ahead:
        by_user.setdefault(row[2], []).append(int(row[3]))
    largest = sorted(by_user.items(), key=lambda item: -sum(item[1]))
    phrases = [f"{len(nodes)} of {user} ({counted(sum(nodes), 'node')})" for user, nodes in largest[:MOST_USERS]]
    phrases += [f"{sum(len(nodes) for _, nodes in largest[MOST_USERS:])} of others"] * (len(largest) > MOST_USERS)
    verb = "is" if len(ahead) == 1 else "are"
    return [f"{counted(len(ahead), 'job')} of partition {partition} {verb} before it: {', '.join(phrases)}{running}"]


def _running(slurm: Slurm, partition: str) -> str:
    command = ("squeue", "--noheader", "--states=RUNNING", f"--partition={partition}", "--format=%e")
    ends = [seconds_of(word) for word in slurm.ask(*command, seconds=QUESTION_SECONDS).split()]
    known_ends = [end for end in ends if end != FOREVER]
    if not ends:
        return ""
    verb = "runs" if len(ends) == 1 else "run"
    return f"; {counted(len(ends), 'job')} {verb}{f', the next ends by {clock(min(known_ends))}' if known_ends else ''}"


def _limits(slurm: Slurm, details: Mapping[str, str]) -> list[str]:
    """Describe the limits of account and QoS that the job would exceed now."""
    if not details.get("Reason", "").startswith(_LIMIT_WORDS):
        return []
    user = details["UserId"].partition("(")[0]
    limits = cluster_info.limits(slurm, user, details.get("Account"), details.get("QOS"))
    nodes, cpus = (int(details.get(key, "1").partition("-")[0]) for key in ("NumNodes", "NumCPUs"))
    wanted = {"job": 1, "node": nodes, "cpu": cpus, "gres/gpu": _gpus(details.get("ReqTRES", ""))}
    return [
        f"{limit.owner} allows {counted(limit.most, UNITS[limit.unit])} at a time ({limit.name}): {limit.used} in use, and it"
        f" wants {wanted[limit.unit]}"
        for limit in limits
        if limit.used + wanted[limit.unit] > limit.most
    ]


def _gpus(tres: str) -> int:
    return next((int(word.partition("=")[2]) for word in tres.split(",") if word.startswith("gres/gpu=")), 0)


def _sooner(slurm: Slurm, details: Mapping[str, str], resources: Resources, profile: SlurmProfile, script: Path) -> str:
    queries = ClusterQueries.begin(slurm, script, resources, profile)
    start = seconds_of(details.get("StartTime", ""))
    planned = PlannedStart(start=start) if start != FOREVER else queries.test(resources)
    return queries.sooner(planned)

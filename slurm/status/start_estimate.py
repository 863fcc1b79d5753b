"""The start estimate of a dry run: whether the run would wait, why, and which smaller request would start sooner."""

import difflib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

from ropewalk.cluster.config import NodeRange, Resources
from ropewalk.cluster.errors import BackendError
from ropewalk.cluster.process.scratch import scratch
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.text import counted
from ropewalk.slurm import cluster_info
from ropewalk.slurm.batch.script import flags, render_job, requests
from ropewalk.slurm.commands import AT_ONCE_SECONDS, QUESTION_SECONDS, PlannedStart, Slurm
from ropewalk.slurm.profile import SlurmProfile
from ropewalk.slurm.status.size_limits import SizeLimit, qos_limits, size_limits
from ropewalk.slurm.times import FOREVER

BUDGET_SECONDS = 1.5  # total time for queries; someone at a terminal waits
MAX_QUERIES = 5  # the request itself, and smaller ones
BEFORE_SECONDS = 120.0  # a run ends at least this long before a reservation
UNITS = {"job": "job", "node": "node", "cpu": "CPU", "gres/gpu": "GPU"}


def start_estimate(slurm: Slurm, run: RunDir, resources: Resources, profile: SlurmProfile) -> str:
    """Return one sentence: if the run would wait, why, and which smaller request starts sooner. Never raises BackendError."""
    with scratch("o") as folder:
        script = folder / "job.sbatch"
        script.write_text(render_job(run, resources, profile))
        try:
            slurm.ping()
            return ClusterQueries.begin(slurm, script, resources.as_allocated(), profile).sentence()
        except BackendError as error:
            return f"Slurm cannot be asked whether the run would wait: {error}."


@dataclass
class ClusterQueries:
    """Queries about one request, limited in number and time, and the state of its partition."""

    slurm: Slurm
    script: Path
    resources: Resources
    profile: SlurmProfile
    partitions: Sequence[cluster_info.Partition]
    partition: cluster_info.Partition | None
    nodes: Sequence[cluster_info.Node]
    deadline: float
    num_queries: int = 0

    @classmethod
    def begin(cls, slurm: Slurm, script: Path, resources: Resources, profile: SlurmProfile) -> "ClusterQueries":
        """Query the partitions, and the nodes of the one that the request goes to."""
        deadline = time.monotonic() + BUDGET_SECONDS
        partitions = cluster_info.partitions(slurm)
        wanted = (profile.partition or "").split(",")
        target = next((p for p in partitions if (p.name in wanted if profile.partition else p.default)), None)
        nodes = cluster_info.nodes(slurm, target.name) if target else []
        return cls(slurm, script, resources, profile, partitions, target, nodes, deadline)

    def test(self, resources: Resources) -> PlannedStart:
        """Ask Slurm when the script would start with other resources."""
        self.num_queries += 1
        before = requests(self.resources)
        changed = {name: value for name, value in requests(resources).items() if before.get(name) != value}
        return self.slurm.test_only(self.script, *flags(changed))

    def sentence(self) -> str:
        first = self.test(self.resources)
        if first.partition and self.partition and first.partition != self.partition.name:
            self.partition = next((p for p in self.partitions if p.name == first.partition), self.partition)
            self.nodes = cluster_info.nodes(self.slurm, self.partition.name)
        if first.refusal:
            return self._explain_refusal(first)
        if self.partition and self.partition.state == "DOWN":
            return f"It would wait until partition {self.partition.name} is up again{self._other_partitions()}."
        if limit := self._exceeded_limit():
            return f"It would wait: {limit}."
        if first.at_once:
            return f"It would start at once{f' on {first.nodes}' if first.nodes else ''}{self._competition(first)}."
        if first.start == FOREVER:
            return "Slurm would accept it but does not say when it would start."
        return f"It would wait until about {clock(first.start)}{self._why_and_remedy(first)}."

    # --- waiting

    def sooner(self, planned: PlannedStart) -> str:
        """Describe a smaller request that starts sooner than a planned start; empty if there is none."""
        if planned.refusal or planned.at_once:
            return ""
        shorter = self._before_reservation(planned) if planned.start != FOREVER else None
        candidates = [shorter[1]] if shorter is not None and shorter[1] is not None else self._smaller_requests()
        return self._earlier_start(candidates, planned)

    def _why_and_remedy(self, first: PlannedStart) -> str:
        shorter = self._before_reservation(first)
        if shorter is not None:
            reservation, resources = shorter
            why = f"a {'maintenance ' if reservation.maintenance else ''}reservation begins at {clock(reservation.start)}"
            if better := self._earlier_start([resources] if resources else [], first):
                return f": {why}; {better}"
            if reservation.start > time.time():
                return f" ({why})"
            return f" (reservation {reservation.name} holds {reservation.nodes} nodes until {clock(reservation.end)})"
        better = self._earlier_start(self._smaller_requests(), first)
        return f" ({self._partition_load()})" + (f"; {better}" if better else "")

    def _partition_load(self) -> str:
        if not self.partition:
            return "Slurm gives no reason"
        lost = sum(not node.usable for node in self.nodes)
        free = sum(node.free for node in self.nodes)
        down = f", {lost} {'is' if lost == 1 else 'are'} down or drained" if lost else ""
        waiting = self._waiting()
        queue = f", {counted(waiting, 'job')} {'waits' if waiting == 1 else 'wait'} already" if waiting else ""
        return f"partition {self.partition.name} has {free} of {len(self.nodes)} nodes free{down}{queue}"

    def _smaller_requests(self) -> list[Resources]:
        least = self.resources.nodes.least
        free = sum(node.free for node in self.nodes)
        counts = sorted({count for count in (free, least // 2, 1) if 0 < count < least}, reverse=True)
        candidates = [self._changed_request(nodes=count) for count in counts]
        if self.resources.cpus:
            idle = sorted((node.idle_cpus for node in self.nodes if node.usable), reverse=True)[least - 1 : least]
            candidates = [self._changed_request(cpus=count) for count in idle if 0 < count < self.resources.cpus] + candidates
        return candidates

    def _before_reservation(self, first: PlannedStart) -> tuple[cluster_info.Reservation, Resources | None] | None:
        """Return the reservation whose end the run waits for, and the request that would end before it begins, if any."""
        limit = self.resources.time_limit_minutes or (self.partition and self.partition.max_minutes) or FOREVER
        now = time.time()
        for reservation in sorted(cluster_info.reservations(self.slurm), key=lambda r: r.start):
            if self.profile.reservation == reservation.name or first.start < reservation.end - AT_ONCE_SECONDS:
                continue
            if reservation.start > now + limit * 60 or reservation.end < now:
                continue
            minutes = (reservation.start - now - BEFORE_SECONDS) / 60
            minutes = math.floor(minutes / 5) * 5 if minutes >= 15 else math.floor(minutes)
            fits = minutes >= 1 and minutes * 60 > self.resources.grace_seconds
            return reservation, self._changed_request(time_limit_minutes=minutes) if fits else None
        return None

    def _exceeded_limit(self) -> str:
        """Describe the limit of the user or account that the request exceeds now; `sbatch --test-only` ignores these limits."""
        try:
            limits = cluster_info.limits(self.slurm, getuser(), self.profile.account, self.profile.qos)
        except (BackendError, OSError, KeyError):
            return ""
        least, gpus = self.resources.nodes.least, self.resources.gpus
        wanted = {"job": 1, "node": least, "cpu": least * (self.resources.cpus or 1), "gres/gpu": least * gpus}
        for limit in limits:
            if limit.used + wanted[limit.unit] > limit.most:
                left = limit.most - limit.used
                fewer = self._changed_request(nodes=left) if limit.unit == "node" and 0 < left < least else None
                better = f"; {_change(self.resources, fewer)} would not" if fewer else ""
                verb = "in use" if limit.unit != "job" else "runs" if limit.used == 1 else "run"
                most, used = counted(limit.most, UNITS[limit.unit]), counted(limit.used, UNITS[limit.unit])
                return f"{limit.owner} allows {most} at a time ({limit.name}){f', {used} {verb}' * (limit.used > 0)}{better}"
        return ""

    def _competition(self, first: PlannedStart) -> str:
        if first.preempts:
            return ", by preempting others"
        waiting = self._waiting()
        return (
            f", unless {counted(waiting, 'job')} waiting in that partition {'comes' if waiting == 1 else 'come'} first"
            if waiting
            else ""
        )

    def _waiting(self) -> int:
        """Return the number of jobs that wait for nodes of the partition, not for anything else."""
        if not self.partition:
            return 0
        command = ["squeue", "--noheader", "--states=PENDING", f"--partition={self.partition.name}", "--format=%r"]
        return sum(reason in {"Priority", "Resources"} for reason in self.slurm.ask(*command, seconds=QUESTION_SECONDS).split())

    # --- refusals

    def _explain_refusal(self, first: PlannedStart) -> str:
        wanted = self.profile.partition
        names = [partition.name for partition in self.partitions]
        unknown = [word for word in (wanted or "").split(",") if word and word not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the cluster has {', '.join(names)}."
            return f"Slurm would refuse it: there is no partition {unknown[0]!r}; {hint}"
        if self.partition and self.partition.state not in {"UP", "DOWN"}:
            state = self.partition.state
            return f"Slurm would refuse it: partition {self.partition.name} is in state {state}{self._other_partitions()}."
        over = [limit for limit in self._size_limits(first.refusal) if self._requested(limit.key) > limit.most]
        if over:
            tightest = {limit.key: min(other.most for other in over if other.key == limit.key) for limit in over}
            better = self._earlier_start([self._changed_request(**tightest)] if min(tightest.values()) >= 1 else [], first)
            return f"Slurm would refuse it: {' and '.join(limit.message for limit in over)}{f'; {better}' if better else ''}."
        usable = sum(node.usable for node in self.nodes)
        available = [self._changed_request(nodes=usable)] if 0 < usable < self.resources.nodes.least else []
        better = self._earlier_start([*available, *self._smaller_requests()], first)
        remedy = f"; {better}" if better else ""
        if self.nodes and usable < self.resources.nodes.least:
            return f"It would wait until nodes come back ({self._partition_load()}){remedy}."
        whose = "; `ropewalk doctor --on` this cluster lists yours" * bool(re.match("Invalid (account|qos)", first.refusal))
        return f"Slurm would refuse it: {first.refusal}{whose}{remedy}."

    def _size_limits(self, refusal: str) -> list[SizeLimit]:
        limits = size_limits(self.partition, self.nodes) if self.partition else []
        if self.profile.qos and re.search(r"QOS|policy", refusal):
            limits += qos_limits(self.slurm, self.profile.qos)
        return limits

    def _other_partitions(self) -> str:
        others = [p.name for p in self.partitions if p.state == "UP"]
        return f"; up: {', '.join(others)}" if others else ""

    # --- other requests

    def _earlier_start(self, candidates: Sequence[Resources], first: PlannedStart) -> str:
        """Describe the first candidate that starts at once, else the one that starts soonest; empty if none starts sooner."""
        best, message = first.start - AT_ONCE_SECONDS, ""
        for resources in candidates:
            if self.num_queries >= MAX_QUERIES or time.monotonic() > self.deadline:
                break
            other = self.test(resources)
            if other.at_once:
                return f"{_change(self.resources, resources)} would start at once"
            if other.start < best:
                best, message = other.start, f"{_change(self.resources, resources)} would start at about {clock(other.start)}"
        return message

    def _requested(self, key: str) -> float:
        nodes = {"nodes": self.resources.nodes.least, "most_nodes": self.resources.nodes.most}
        return nodes[key] if key in nodes else getattr(self.resources, key) or 0

    def _changed_request(self, **changes: float) -> Resources:
        """Return the request with other values: `nodes` is the minimum number of nodes, `most_nodes` the maximum."""
        current = self.resources.nodes
        most = int(changes.pop("most_nodes", current.most))
        least = min(int(changes.pop("nodes", current.least)), most)
        nodes = NodeRange(least=least, most=most if current.elastic else least)
        return self.resources.model_copy(update={"nodes": nodes, **changes})


def clock(seconds: float) -> str:
    """Format a time in this machine's zone: 14:30, with the date unless it is today."""
    day = "" if time.localtime(seconds)[:3] == time.localtime()[:3] else "%Y-%m-%d "
    return time.strftime(f"{day}%H:%M", time.localtime(seconds))


def _change(before: Resources, after: Resources) -> str:
    """Describe how a request differs from the original one: `2 nodes`, or the keys to set."""
    keys = [key for key in type(before).model_fields if getattr(before, key) != getattr(after, key)]
    if keys == ["nodes"] and not after.nodes.elastic:
        return counted(after.nodes.least, "node")
    values = ((key, getattr(after, key)) for key in keys)
    settings = " and ".join(
        f"resources.{key}={value:g}" if isinstance(value, float) else f"resources.{key}={value}" for key, value in values
    )
    return f"with {settings} it"

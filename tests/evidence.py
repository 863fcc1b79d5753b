"""Diagnostics of a failed test's runs for its report; the machine may be gone tomorrow."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RUNS_VARIABLE, RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.cluster.run.names import AGENTS

MOST_RUNS = 3
LAST_EVENTS = 20
LAST_LINES = 6
MOST_LINES = 30
LONGEST = 300


def of_runs(roots: set[Path]) -> str:
    """The newest runs below some folders: outcomes, last events, last words of every process of the last attempts."""
    places = {path.parent for root in roots for path in root.glob("**/run.yaml")}
    newest = sorted(places, key=lambda path: (path / "run.yaml").stat().st_mtime)[-MOST_RUNS:]
    return "\n".join(line[:LONGEST] for path in newest for line in _of_run(RunDir(path)))


def _of_run(run: RunDir) -> Iterator[str]:
    yield f"{run.id}, at {_clock(time.time())}"
    for attempt in run.attempts():
        outcome = run.outcome(attempt)
        ended = f"{_clock(outcome.ended)} {outcome.state} {outcome.exit_code}: {outcome.cause}" if outcome else "not over"
        steps = [int(line["step"]) for line in run.read_metrics() if line["attempt"] == attempt]
        yield f"  attempt {attempt} {ended}; steps {min(steps, default=None)} to {max(steps, default=None)}"
    for event in run.read_events()[-LAST_EVENTS:]:
        rest = {key: value for key, value in event.items() if key not in {"time", "event"}}
        yield f"  {_clock(event['time'])} {event['event']} {json.dumps(rest, default=str)}"
    for attempt in run.attempts()[-2:]:
        yield from (f"  {attempt}, an agent: {line}" for line in read_lines(run.attempt_dir(attempt) / AGENTS))
        for log in sorted(run.log_dir(attempt).glob("*.log")):
            for line in log.read_text(errors="replace").splitlines()[-LAST_LINES:]:
                yield f"  {attempt}/{log.name} | {line}"


def of_pods(namespace: Any) -> str:
    """The pods of a test's namespace, why they wait, and what Kubernetes said of them last."""
    pods = []
    for pod in namespace.pods():
        status = pod["status"]
        why = [c.get("message") for c in status.get("conditions", []) if c["status"] == "False" and c.get("message")]
        leaves = " leaves" if "deletionTimestamp" in pod["metadata"] else ""
        pods.append(f"  {pod['metadata']['name']} {status['phase']}{leaves} on {pod['spec'].get('nodeName')} {why}"[:LONGEST])
    output = namespace.kubectl("get", "events", "--sort-by=.lastTimestamp", "--no-headers").splitlines()[-LAST_EVENTS:]
    queued = namespace.kubectl("get", "workloads.kueue.x-k8s.io", "--ignore-not-found").splitlines()
    return "\n".join([*pods, *(line[:LONGEST] for line in [*output, *queued])])


def of_slurm(configuration: Path) -> str:
    """Nodes, queue, jobs, and the controller's last words, of the cluster that the test's commands find."""
    request = (["sinfo", "--Node", "--format=%N %T %E"], ["squeue", "--format=%i %j %T %r %N"], ["scontrol", "show", "job"])
    lines = []
    for command in request:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        lines += [line for line in (done.stdout or done.stderr).splitlines() if line.strip()][:MOST_LINES]
    for log in (configuration.parents[1] / "log").glob("slurmctld*"):
        lines += log.read_text(errors="replace").splitlines()[-LAST_EVENTS:]
    return "\n".join(f"  {line[:LONGEST]}" for line in lines)


def sections(arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and text, of a test with these fixtures. Never an error of its own."""
    namespace = arguments.get("namespace")
    here = [arguments.get("tmp_path"), os.environ.get(RUNS_VARIABLE), getattr(namespace, "runs", None)]
    try:
        yield "its runs", of_runs({Path(path) for path in here if path})
        if namespace is not None:
            yield "its pods", of_pods(namespace)
        elif cluster := os.environ.get("SLURM_CONF"):
            yield "its Slurm", of_slurm(Path(cluster))
    except (OSError, ValueError, KeyError, AssertionError, subprocess.SubprocessError, RopewalkError) as error:
        yield "what its runs say could not be read", repr(error)


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 10)}"

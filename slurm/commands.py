"""Runs Slurm's commands and parses their output. The runner is injected, so that tests can replace Slurm."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ropewalk.cluster.errors import BackendError, CommandMissingError, SchedulerAwayError
from ropewalk.cluster.process.scratch import outside
from ropewalk.cluster.run.context import OWN_VARIABLES
from ropewalk.cluster.secrets.variables import without_secrets
from ropewalk.slurm.times import FOREVER, seconds_of

COMMAND_SECONDS = 60.0
QUESTION_SECONDS = 5.0  # for queries that someone at a terminal waits for
AT_ONCE_SECONDS = 30.0  # a start within this time counts as immediate
ACCOUNTING_SECONDS = 10.0
AWAY = re.compile(
    r"unable to contact|connection refused|timed out|time-?out|communication (connection|shutdown)|zero bytes", re.I
)
NO_CLUSTER = "Could not establish a configuration source"
_ARRAY = re.compile(r"([^_]+)_\[([^%\]]+)(?:%\d+)?\]")
_START = re.compile(r"Job \d+ to start at (\S+)(?: using \d+ processors on (?:nodes )?(\S+))?(?: in partition (\S+))?")
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
QUEUE_FORMAT = "%i|%T|%r|%N|%S|%e|%j|%k"

# variables that change the output formats parsed here, such as SLURM_TIME_FORMAT=relative
FORMATS = ("SQUEUE_", "SINFO_", "SACCT_", "SLURM_TIME_FORMAT")
# which cluster, and whose credentials
PRESERVED = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})

Runner = Callable[[Sequence[str], float], subprocess.CompletedProcess[str]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A line of squeue."""

    id: str  # 123, or 123_4 in an array
    state: str
    reason: str
    nodes: str  # a host list
    start: str
    end: str
    name: str
    comment: str


@dataclass(frozen=True, kw_only=True)
class PlannedStart:
    """Result of `sbatch --test-only`: when and where a request would start, or why Slurm refuses it."""

    start: float = FOREVER  # seconds since the epoch
    nodes: str = ""
    partition: str = ""
    preempts: bool = False
    refusal: str = ""

    @property
    def at_once(self) -> bool:
        """Return True if the request would start without waiting."""
        return self.start - time.time() < AT_ONCE_SECONDS


def run_command(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command without the environment variables that change what Slurm's commands do or print."""
    environment = {**plain_environment(), "SLURM_BITSTR_LEN": "0"}  # do not truncate long lists of array elements
    pipe, late = subprocess.PIPE, threading.Event()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment) as process:

        def give_up() -> None:
            late.set()
            process.kill()

        # communicate(timeout=...) polls every millisecond, which would add a fifth to the time of sbatch
        watchdog = threading.Timer(seconds, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            out, err = process.communicate()
        finally:
            watchdog.cancel()
    if late.is_set():
        raise subprocess.TimeoutExpired(command, seconds)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def plain_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for Slurm's commands.

    Leaves out the variables of a surrounding job and output formats, which change what the commands do, and those of a
    surrounding run: a submitted job inherits its environment and outlives the agent's temporary directory.
    """
    unwanted = (*FORMATS, *(("SLURM_", "SBATCH_", "SRUN_") if "SLURM_JOB_ID" in environment else ()))
    variables = {name: value for name, value in environment.items() if name in PRESERVED or not name.startswith(unwanted)}
    temporary = {"TMPDIR": str(outside(Path(variables["TMPDIR"])))} if "TMPDIR" in variables else {}
    return {name: value for name, value in without_secrets(variables | temporary).items() if name not in OWN_VARIABLES}


class Slurm:
    """Client of the cluster that Slurm's commands talk to."""

    def __init__(self, run: Runner = run_command) -> None:
        self._run = run

    def ask(self, *command: str, seconds: float = COMMAND_SECONDS) -> str:
        """Return a command's output. Raises SchedulerAwayError, CommandMissingError, or BackendError with Slurm's message."""
        done = self._do(command, seconds)
        if done.returncode == 0:
            return done.stdout
        message = " ".join(done.stderr.split()) or " ".join(done.stdout.split())
        if NO_CLUSTER in message:
            raise BackendError(
                f"{command[0]}: this machine belongs to no Slurm cluster; submit from a login node, or set $SLURM_CONF to the"
                " cluster's slurm.conf"
            )
        kind = SchedulerAwayError if AWAY.search(message) else BackendError
        message = message.removeprefix(f"{command[0]}: ").removeprefix("error: ") or f"exit code {done.returncode}"
        raise kind(f"{command[0]}: {message}")

    def _do(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        try:
            return self._run(command, seconds)
        except FileNotFoundError:
            message = f"{command[0]}: not found; is Slurm on this machine? `ropewalk lab slurm up` starts one"
            raise CommandMissingError(message) from None
        except subprocess.TimeoutExpired:
            raise SchedulerAwayError(f"{command[0]} did not end within {seconds:.0f} s") from None

    def ping(self) -> str:
        """Return the answer of `scontrol ping`, in 10 ms even if it is down. Raises SchedulerAwayError, CommandMissingError."""
        try:
            answer = self.ask("scontrol", "ping", seconds=QUESTION_SECONDS)
        except (SchedulerAwayError, CommandMissingError):
            raise
        except BackendError as error:
            answer = str(error)
        answer = " ".join(answer.partition("*")[0].removeprefix("scontrol: ").split())
        if " UP" not in answer:
            raise SchedulerAwayError(f"its controller does not answer ({answer})")
        return answer

    def test_only(self, script: Path | str, *options: str) -> PlannedStart:
        """Run `sbatch --test-only` on a script with further options; nothing is submitted."""
        done = self._do(["sbatch", "--test-only", *options, str(script)], QUESTION_SECONDS)
        if done.returncode and AWAY.search(done.stderr):
            raise SchedulerAwayError(f"sbatch: {' '.join(done.stderr.split())}")
        return parse_test_only(done.stderr, accepted=done.returncode == 0)

    def sbatch(self, script: Path | str, *options: str) -> str:
        """Submit a script and return the job id."""
        return self.ask("sbatch", "--parsable", *options, str(script)).strip().splitlines()[-1].partition(";")[0]

    def queue(self, *options: str, seconds: float = COMMAND_SECONDS) -> list[Job]:
        """Return the jobs that squeue lists, including ended ones that the controller still remembers."""
        command = ("squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FORMAT}", *options)
        lines = self.ask(*command, seconds=seconds).splitlines()
        jobs = [parse_job(line) for line in lines if line.count("|") >= QUEUE_FORMAT.count("|")]
        return [replace(job, id=element) for job in jobs for element in array_elements(job.id)]

    def my_jobs(self) -> list[Job]:
        return self.queue(f"--user={os.geteuid()}")

    def jobs_named(self, name: str) -> list[Job]:
        return self.queue(f"--user={os.geteuid()}", f"--name={name}")

    def accounting_states(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return (name, state) by id of jobs that the controller has forgotten; empty without accounting."""
        command = ("sacct", "--noheader", "--parsable2", "--allocations", "--array", "--format=JobID,State,JobName")
        try:
            text = self.ask(*command, f"--jobs={','.join(ids)}", seconds=ACCOUNTING_SECONDS)
        except BackendError:
            return {}
        rows = [line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2]
        return {job: (name, state.split()[0]) for job, state, name in rows if state.strip()}

    def job_details(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        text = self.ask("scontrol", "--oneliner", "show", "job", job, seconds=10)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def hosts(self, host_list: str) -> list[str]:
        """Return the host names of a host list such as n[1-3]."""
        return self.ask("scontrol", "show", "hostnames", host_list).split() if host_list else []

    def node_state(self, node: str) -> str:
        """Return a node's state in sinfo's short form, such as `idle` or `down*`; the star means that it does not respond."""
        return self.ask("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%t", seconds=10).split()[0]

    def cancel(self, *options: str) -> None:
        """Cancel jobs with scancel. Jobs that have already ended are no error."""
        try:
            self.ask("scancel", *options)
        except SchedulerAwayError:
            raise
        except BackendError as error:
            if "invalid job" not in str(error).lower():
                raise

    def update(self, job: str, **fields: str) -> None:
        """Change fields of a job with `scontrol update`."""
        self.ask("scontrol", "update", f"JobId={job}", *(f"{key}={value}" for key, value in fields.items()))


def array_elements(job: str) -> list[str]:
    """Return the job ids that an array id such as 7_[0-2,5-9:2%4] stands for.

    squeue prints that form for array elements that were cancelled together, even with --array. Ids in any other form, such as
    those of other users' jobs, are returned unchanged.
    """
    array = _ARRAY.fullmatch(job)
    if array is None:
        return [job]
    ranges = [_RANGE.fullmatch(part) for part in array[2].split(",")]
    if not all(ranges):
        return [job]
    numbers = [(int(r[1]), int(r[2] or r[1]), int(r[3] or 1)) for r in ranges if r]
    return [f"{array[1]}_{i}" for first, last, stride in numbers for i in range(first, last + 1, max(stride, 1))]


def parse_job(line: str) -> Job:
    """Parse a line of squeue in QUEUE_FORMAT. The comment is the last field because it may contain the separator."""
    job, state, reason, nodes, start, end, name, comment = line.split("|", QUEUE_FORMAT.count("|"))
    return Job(id=job, state=state, reason=reason, nodes=nodes, start=start, end=end, name=name, comment=comment)


def parse_test_only(output: str, *, accepted: bool) -> PlannedStart:
    """Parse the output of `sbatch --test-only`; a refusal keeps Slurm's message without the command's name."""
    if not accepted:
        lines = [re.sub(r"^(sbatch: )?(error: |fatal: |allocation failure: )?", "", line.strip()) for line in output.splitlines()]
        refusal = "; ".join(dict.fromkeys(line.rstrip(".") for line in lines if line))
        return PlannedStart(refusal=refusal or "it gives no reason")
    start = _START.search(output)
    if not start:
        return PlannedStart()
    return PlannedStart(
        start=seconds_of(start[1]), nodes=start[2] or "", partition=start[3] or "", preempts="Preempts:" in output
    )

"""Slurm's commands, run and read. What runs them is injected, so that tests can answer in Slurm's place."""

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
from ropewalk.slurm.times import FOREVER, seconds_of

COMMAND_SECONDS = 60.0
QUESTION_SECONDS = 5.0  # an answer that a person waits for
AT_ONCE_SECONDS = 30.0  # what starts so soon does not wait
ACCOUNTING_SECONDS = 10.0
AWAY = re.compile(
    r"unable to contact|connection refused|timed out|time-?out|communication (connection|shutdown)|zero bytes", re.I
)
_ARRAY = re.compile(r"([^_]+)_\[([^%\]]+)(?:%\d+)?\]")
_START = re.compile(r"Job \d+ to start at (\S+)(?: using \d+ processors on (?:nodes )?(\S+))?(?: in partition (\S+))?")
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
QUEUE_FORMAT = "%i|%T|%r|%N|%S|%e|%j|%k"

# SLURM_TIME_FORMAT=relative, say, makes time stamps that nobody can read back
FORMATS = ("SQUEUE_", "SINFO_", "SACCT_", "SLURM_TIME_FORMAT")
# which cluster, and who we are
KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})

Runner = Callable[[Sequence[str], float], subprocess.CompletedProcess[str]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One line of squeue."""

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
    """What `sbatch --test-only` says of a request: when and where it would start, or why Slurm refuses it."""

    start: float = FOREVER  # seconds since the epoch
    nodes: str = ""
    partition: str = ""
    preempts: bool = False
    refusal: str = ""

    @property
    def at_once(self) -> bool:
        """Whether the request would start without waiting."""
        return self.start - time.time() < AT_ONCE_SECONDS


def run_command(words: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables that change what Slurm's commands do or print."""
    environment = {**plain_environment(), "SLURM_BITSTR_LEN": "0"}  # long lists of an array's elements are not cut short
    pipe, late = subprocess.PIPE, threading.Event()
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment) as process:

        def give_up() -> None:
            late.set()
            process.kill()

        # communicate's own time limit looks for the end by sleeping a millisecond, a fifth of what sbatch takes
        watchdog = threading.Timer(seconds, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            out, err = process.communicate()
        finally:
            watchdog.cancel()
    if late.is_set():
        raise subprocess.TimeoutExpired(words, seconds)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def plain_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment without a surrounding job's variables and output formats, which would change what Slurm's commands do,
    and without those of a surrounding run: a job that is submitted takes its environment along, and outlives an agent's
    temporary directory.
    """
    unwanted = (*FORMATS, *(("SLURM_", "SBATCH_", "SRUN_") if "SLURM_JOB_ID" in environment else ()))
    kept = {name: value for name, value in environment.items() if name in KEPT or not name.startswith(unwanted)}
    temporary = {"TMPDIR": str(outside(Path(kept["TMPDIR"])))} if "TMPDIR" in kept else {}
    return {name: value for name, value in (kept | temporary).items() if name not in OWN_VARIABLES}


class Slurm:
    """The cluster that Slurm's commands talk to."""

    def __init__(self, run: Runner = run_command) -> None:
        self._run = run

    def ask(self, *words: str, seconds: float = COMMAND_SECONDS) -> str:
        """What a command prints. Raises SchedulerAwayError, CommandMissingError, or BackendError with Slurm's own words."""
        done = self._do(words, seconds)
        if done.returncode == 0:
            return done.stdout
        said = " ".join(done.stderr.split()) or " ".join(done.stdout.split())
        kind = SchedulerAwayError if AWAY.search(said) else BackendError
        raise kind(f"{words[0]}: {said.removeprefix(f'{words[0]}: ').removeprefix('error: ') or f'exit code {done.returncode}'}")

    def _do(self, words: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        try:
            return self._run(words, seconds)
        except FileNotFoundError:
            told = f"{words[0]}: not found; is Slurm on this machine? `ropewalk lab slurm up` starts one"
            raise CommandMissingError(told) from None
        except subprocess.TimeoutExpired:
            raise SchedulerAwayError(f"{words[0]} did not end within {seconds:.0f} s") from None

    def ping(self) -> str:
        """What `scontrol ping` says, in 10 ms; other commands wait long for a dead controller.

        Raises SchedulerAwayError or CommandMissingError.
        """
        try:
            said = self.ask("scontrol", "ping", seconds=QUESTION_SECONDS)
        except (SchedulerAwayError, CommandMissingError):
            raise
        except BackendError as error:
            said = str(error)
        words = " ".join(said.partition("*")[0].removeprefix("scontrol: ").split())
        if " UP" not in words:
            raise SchedulerAwayError(f"its controller does not answer ({words})")
        return words

    def test_only(self, script: Path | str, *options: str) -> PlannedStart:
        """What `sbatch --test-only` says of a script with other options; nothing is submitted."""
        done = self._do(["sbatch", "--test-only", *options, str(script)], QUESTION_SECONDS)
        if done.returncode and AWAY.search(done.stderr):
            raise SchedulerAwayError(f"sbatch: {' '.join(done.stderr.split())}")
        return parse_test_only(done.stderr, accepted=done.returncode == 0)

    def sbatch(self, script: Path | str, *options: str) -> str:
        """Submit a script; the job's id."""
        return self.ask("sbatch", "--parsable", *options, str(script)).strip().splitlines()[-1].partition(";")[0]

    def queue(self, *options: str, seconds: float = COMMAND_SECONDS) -> list[Job]:
        """The jobs that squeue lists, ended ones too as long as the controller remembers them."""
        words = ("squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FORMAT}", *options)
        lines = self.ask(*words, seconds=seconds).splitlines()
        jobs = [parse_job(line) for line in lines if line.count("|") >= QUEUE_FORMAT.count("|")]
        return [replace(job, id=own) for job in jobs for own in elements(job.id)]

    def my_jobs(self) -> list[Job]:
        """All jobs of this user, in one question."""
        return self.queue(f"--user={os.geteuid()}")

    def named(self, name: str) -> list[Job]:
        """This user's jobs of one name."""
        return self.queue(f"--user={os.geteuid()}", f"--name={name}")

    def accounted(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """(name, state) by id of jobs that the controller has forgotten; nothing where there is no accounting."""
        words = ("sacct", "--noheader", "--parsable2", "--allocations", "--array", "--format=JobID,State,JobName")
        try:
            text = self.ask(*words, f"--jobs={','.join(ids)}", seconds=ACCOUNTING_SECONDS)
        except BackendError:
            return {}
        rows = [line.split("|", 2) for line in text.splitlines() if line.count("|") >= 2]
        return {job: (name, state.split()[0]) for job, state, name in rows if state.strip()}

    def job_details(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        text = self.ask("scontrol", "--oneliner", "show", "job", job, seconds=10)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def hosts(self, host_list: str) -> list[str]:
        """The single names of a host list such as n[1-3]."""
        return self.ask("scontrol", "show", "hostnames", host_list).split() if host_list else []

    def node_state(self, node: str) -> str:
        """A node's state in sinfo's short word, such as `idle` or `down*`; a star: it does not answer."""
        return self.ask("sinfo", "--noheader", "--Node", f"--nodes={node}", "--format=%t", seconds=10).split()[0]

    def cancel(self, *words: str) -> None:
        """Cancel jobs by scancel; a job that is over already is no error."""
        try:
            self.ask("scancel", *words)
        except SchedulerAwayError:
            raise
        except BackendError as error:
            if "invalid job" not in str(error).lower():
                raise

    def update(self, job: str, **fields: str) -> None:
        """Change fields of a job by `scontrol update`."""
        self.ask("scontrol", "update", f"JobId={job}", *(f"{key}={value}" for key, value in fields.items()))


def elements(job: str) -> list[str]:
    """The single jobs of an id such as 7_[0-2,5-9:2%4]: what of an array was cancelled as a whole stays one, even with --array.

    An id of any other form is that of one job: it may be a stranger's.
    """
    found = _ARRAY.fullmatch(job)
    if found is None:
        return [job]
    ranges = [_RANGE.fullmatch(part) for part in found[2].split(",")]
    if not all(ranges):
        return [job]
    numbers = [(int(r[1]), int(r[2] or r[1]), int(r[3] or 1)) for r in ranges if r]
    return [f"{found[1]}_{i}" for first, last, stride in numbers for i in range(first, last + 1, max(stride, 1))]


def parse_job(line: str) -> Job:
    """Read a line of squeue in QUEUE_FORMAT; the comment comes last, since it may hold anything."""
    job, state, reason, nodes, start, end, name, comment = line.split("|", QUEUE_FORMAT.count("|"))
    return Job(id=job, state=state, reason=reason, nodes=nodes, start=start, end=end, name=name, comment=comment)


def parse_test_only(said: str, *, accepted: bool) -> PlannedStart:
    """Read what `sbatch --test-only` has said; a refusal keeps Slurm's own words, without the commands' names."""
    if not accepted:
        lines = [re.sub(r"^(sbatch: )?(error: |fatal: |allocation failure: )?", "", line.strip()) for line in said.splitlines()]
        words = "; ".join(dict.fromkeys(line.rstrip(".") for line in lines if line))
        return PlannedStart(refusal=words or "it does not say why")
    found = _START.search(said)
    if not found:
        return PlannedStart()
    return PlannedStart(start=seconds_of(found[1]), nodes=found[2] or "", partition=found[3] or "", preempts="Preempts:" in said)

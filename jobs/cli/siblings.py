"""Submissions to several clusters: a run on each, of which only the first that has nodes starts.

    submit --on A,B ──▶ a run on A, a run on B ──▶ each asks for the start lock once it has nodes
    sync --follow   ──▶ writes the choice down, gives the lock to one run, and cancels the others

What is known of a submission is in the user's folder of state: `ID.json` until all its runs have started or ended, and
`ID.holder`, the cluster whose run may start, which is created once and never changes.
"""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ropewalk.cluster.backends.profiles import load_profile
from ropewalk.cluster.errors import EXIT_USER_MISTAKE, BackendError, ConfigError, RopewalkError
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.exclusive import create_whole
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.cluster.run.siblings import SIBLINGS
from ropewalk.jobs.cli.known_runs import state_dir, submission_id
from ropewalk.jobs.cli.moving import Step
from ropewalk.jobs.cli.ssh.command import reached_through_ssh
from ropewalk.jobs.registry import view_class
from ropewalk.jobs.runs.move.start_locks import start_locks
from ropewalk.jobs.runs.show.view import RunView

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
FOLDER = "siblings"
States = dict[str, dict[str, float]]


def sibling_record(text: str) -> dict[str, Any]:
    """Return the part of run.yaml that makes a run wait for its start lock. `text`: SUBMISSION:CLUSTERS."""
    submission, _, clusters = text.partition(":")
    return {SIBLINGS: {"submission": submission, "clusters": clusters.split(",")}}


def submit_siblings(job: str, clusters: Sequence[str], arguments: Sequence[str], program: Sequence[str]) -> list[dict[str, Any]]:
    """Submit a command to several clusters, and return what `submit --json` says of each. Raises RopewalkError.

    `arguments`: of `submit`, without --on and --json. A command that was interrupted is given again, and goes on.
    """
    for cluster in clusters:
        load_profile(cluster)  # raises ConfigError for an unknown cluster
    if len(set(clusters)) < len(clusters):
        raise ConfigError(f"--on {','.join(clusters)}: names a cluster twice")
    if view_class(job).submit_needed is not RunView.submit_needed:
        raise ConfigError(f"--on {','.join(clusters)}: a {job} run may submit further runs, which would start on each; name one")
    folder = state_dir() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with submission_id(",".join(clusters), [*arguments, "--", *program]) as submission:
        path = folder / f"{submission}.json"
        state = read_json(path) or {"clusters": list(clusters), "runs": {}}
        for cluster in clusters:
            if cluster not in state["runs"]:
                others = [each["run"] for each in state["runs"].values()]
                state["runs"][cluster] = _submit(cluster, f"{submission}:{','.join(clusters)}", arguments, program, others)
                write_json(path, state)
    return [*state["runs"].values()]


def show_on_each(clusters: Sequence[str], arguments: Sequence[str], program: Sequence[str]) -> None:
    """Print what a command that submits nothing says of each cluster. Exits with the code of the first that fails.

    `arguments`: of `submit`, without --on.
    """
    for cluster in clusters:
        shown = _submit_to(cluster, arguments, program)
        print(shown.stdout, end="", flush=True)
        if shown.returncode:
            sys.exit(shown.returncode)


def _submit(
    cluster: str, siblings: str, arguments: Sequence[str], program: Sequence[str], others: Sequence[str]
) -> dict[str, Any]:
    """Submit one of the runs, in a process that prints its own messages. Raises BackendError, ConfigError."""
    process = _submit_to(cluster, [*arguments, "--siblings", siblings, "--json"], program)
    if process.returncode:
        kind = ConfigError if process.returncode == EXIT_USER_MISTAKE else BackendError
        waiting = (
            f"; give the same command again, or `ropewalk cancel {' '.join(others)}`, which does not start" if others else ""
        )
        raise kind(f"nothing was submitted to {cluster}, for the reason above{waiting}")
    return dict(json.loads(process.stdout.splitlines()[-1]))


def _submit_to(cluster: str, arguments: Sequence[str], program: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = module_command("ropewalk.jobs.cli", "submit", *arguments, "--on", cluster, *(["--", *program] if program else []))
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


class StartLocks:
    """Gives the start lock of each submission to the first of its runs that asks for it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._folder, self._say = state_dir() / FOLDER, say
        self._errors: dict[str, str] = {}  # by cluster, as they were reported

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer the runs that ask during the block, in a thread of its own."""
        ended = threading.Event()

        def answer() -> None:
            while not ended.wait(POLL_SECONDS):
                try:
                    self.look()
                except Exception:  # such as a full disk; the runs ask again
                    log.exception("runs on several clusters were not answered")

        thread = threading.Thread(target=answer, name="start locks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def look(self) -> None:
        """Ask the clusters once about all submissions, decide those whose runs ask, and tell the runs."""
        submissions = self._submissions()
        states = self._tell(submissions)
        decided = [path for path, runs in submissions.items() if not self._holder(path) and self._decide(path, runs, states)]
        if decided:
            self._tell({path: submissions[path] for path in decided})
        for path, runs in submissions.items():
            if all(states.get(run, {}).get("settled") for run in runs.values()):
                path.unlink(missing_ok=True)

    def _submissions(self) -> dict[Path, dict[str, str]]:
        """Return the runs by cluster of each submission that is complete and not settled."""
        states = {path: read_json(path) or {} for path in sorted(self._folder.glob("*.json"))}
        return {
            path: {cluster: answer["run"] for cluster, answer in state["runs"].items()}
            for path, state in states.items()
            if state and len(state["runs"]) == len(state["clusters"])
        }

    def _holder(self, path: Path) -> str:
        with suppress(FileNotFoundError):
            return path.with_suffix(".holder").read_text()
        return ""

    def _decide(self, path: Path, runs: Mapping[str, str], states: States) -> bool:
        """Choose the run that asked first, unless another process has chosen one, and return True if there is a choice."""
        asking = {cluster: state for cluster, run in runs.items() if (state := states.get(run, {}).get("requested"))}
        if not asking:
            return False
        cluster = min(asking, key=asking.__getitem__)
        if create_whole(path.with_suffix(".holder"), cluster):
            others = " and ".join(run for other, run in runs.items() if other != cluster)
            self._say(f"{runs[cluster]} starts on {cluster}; {others} does not")
        return True

    def _tell(self, submissions: Mapping[Path, Mapping[str, str]]) -> States:
        """Tell all runs who may start, as far as that is decided, and return their states; those of clusters that answer."""
        clusters: dict[str, dict[str, Sequence[str]]] = {}
        for path, runs in submissions.items():
            holder = self._holder(path)
            for cluster, run in runs.items():
                clusters.setdefault(cluster, {})[run] = (holder, runs[holder]) if holder else ()
        if not clusters:
            return {}
        with ThreadPoolExecutor(len(clusters)) as pool:
            answers = pool.map(self._ask, clusters, clusters.values())
        return {run: state for answer in answers for run, state in answer.items()}

    def _ask(self, cluster: str, holders: Mapping[str, Sequence[str]]) -> States:
        """Do `start_locks` on a cluster; a failure is reported once, and tells nothing of its runs."""
        try:
            if reached_through_ssh(cluster) is None:
                answer = start_locks(cluster, holders)
            else:
                with Step("-", cluster, "start-locks", {"holders": holders}) as process:
                    answer = dict(json.loads(process.end()))
        except (RopewalkError, OSError) as error:
            if self._errors.get(cluster) != str(error):
                self._errors[cluster] = str(error)
                self._say(f"{cluster}: {error}")
            return {}
        self._errors.pop(cluster, None)
        return answer

"""The agent of a node, started by the backend: runs the engine, forwards stops and reports the exit code.

Usage: python -m ropewalk.cluster.agent RUN_DIR --attempt N --node K --nodes A..B --address ADDR
Exit codes: 0 done, 85 saved and to be requeued, 42 never retry, 143 stopped without a confirmed checkpoint, else failed.
"""

import argparse
import logging
import os
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from ropewalk.cluster.agent.energy import EnergyAccount, MachinePower
from ropewalk.cluster.agent.idle import IdleWatch
from ropewalk.cluster.agent.inspector import Inspector
from ropewalk.cluster.agent.monitor import Monitor
from ropewalk.cluster.agent.sidecars import Sidecars
from ropewalk.cluster.agent.version import are_incompatible, other_version
from ropewalk.cluster.config import NodeRange
from ropewalk.cluster.engines.entry import write_error
from ropewalk.cluster.engines.process import run_process
from ropewalk.cluster.errors import (
    EXIT_FAILED,
    EXIT_LOST_PEER,
    EXIT_NEVER_RETRY,
    EXIT_REQUEUE,
    EXIT_TERMINATED,
    ConfigError,
    NotReadyError,
)
from ropewalk.cluster.gpus import NODE_GPUS_VARIABLE
from ropewalk.cluster.packages.use import enter, run_in
from ropewalk.cluster.process.child_output import finish_outputs
from ropewalk.cluster.process.forking import are_imported, cuda_is_initialized, import_modules, rank_modules
from ropewalk.cluster.process.kill import end, family, processes_with
from ropewalk.cluster.process.output import configure_logging
from ropewalk.cluster.process.scratch import make_scratch, name_semaphores, remove_scratch
from ropewalk.cluster.process.signals import ShutdownGate, SignalFlag, install_stop_handler
from ropewalk.cluster.run import names
from ropewalk.cluster.run.context import STOP_VARIABLE
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.file_systems import PollTimer
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.heartbeat import heart_file
from ropewalk.cluster.run.node_memory import MEMORY_VARIABLE
from ropewalk.cluster.run.project import PROJECT_VARIABLE
from ropewalk.cluster.secrets.variables import NO_SECRETS, RunSecrets
from ropewalk.cluster.spec import Engine

log = logging.getLogger(__name__)

OUTPUT_SECONDS = 2.0  # for the last output of children at the end
WATCH_SECONDS = 0.2  # between two checks of the stop flag
ATTEMPT_CHECK_SECONDS = 5.0  # between two checks that the attempt still goes on


def main() -> None:
    """Run this node's share of an attempt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--node", type=int, default=0, help="index of this node in the allocation")
    parser.add_argument("--nodes", default="1", help="number of nodes of the group: N or A..B")
    parser.add_argument("--address", default="127.0.0.1", help="address at which the other nodes reach this one")
    arguments = parser.parse_args()
    configure_logging(f"node {arguments.node}")
    _enter_packages(arguments)
    agent = Agent(arguments)
    os.environ[PROJECT_VARIABLE] = str(agent.run_dir.project)
    code = agent.run()
    logging.shutdown()
    os._exit(code)


def _enter_packages(arguments: argparse.Namespace) -> None:
    """Unpack the run's environment on this node, and continue in it if the run's processes need it."""
    run = RunDir(arguments.run_dir)
    try:
        if python := enter(run.record, run.path.parent):
            run_in(python, ["ropewalk.cluster.agent", *sys.argv[1:]])
    except (ConfigError, OSError) as error:
        _record(run.attempt_dir(arguments.attempt), arguments.node, error, EXIT_NEVER_RETRY)
        sys.exit(EXIT_NEVER_RETRY)


def _record(attempt_dir: Path, node: int, error: Exception, code: int) -> None:
    """Record the error for which a node's agent exits."""
    write_error(attempt_dir, f"node-{node}", error, code, who=f"node {node}'s agent", node=node)


class Agent:
    """Runs one node's share of an attempt."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.run_dir = RunDir(arguments.run_dir)
        self.run_dir.refresh_changes()
        self.attempt: int = arguments.attempt
        self.node: int = arguments.node
        self.nodes = NodeRange.model_validate(NodeRange.parse(arguments.nodes))
        self.address: str = arguments.address
        self.folder = self.run_dir.attempt_dir(self.attempt)
        self.resources = self.run_dir.resources(self.attempt)
        self.engine = Engine(self.run_dir.record["engine"])
        if self.run_dir.record.get("offline"):  # all inputs were fetched at submission
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        for name, value in self.run_dir.record.get("required_environment", {}).items():
            os.environ.setdefault(name, value)
        os.environ.setdefault(NODE_GPUS_VARIABLE, str(self.resources.gpus))
        # on the node's local disk, since ranks check the stop flag at every step
        self.scratch = make_scratch("a")
        name_semaphores(self.scratch)
        self.stop_flag = self.scratch / "stop"
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.scratch)  # so that files of torch and others are removed at the end
        memory = os.environ.get(MEMORY_VARIABLE) if self.engine is Engine.RANKS else None
        self.memory = make_scratch("m", memory) if memory else None
        self.secrets = NO_SECRETS  # only the children have them in their environment
        self.sidecars = Sidecars()
        self.inspector = Inspector(self.run_dir, self.attempt, self.node, self.stop_flag, self.sidecars.pids)
        self._next_attempt_check = time.monotonic() + ATTEMPT_CHECK_SECONDS
        self._fatal_timer = PollTimer(self.folder)
        self._stop_requested = SignalFlag()
        self._leave_by: float | None = None  # monotonic deadline, set by a stop
        self._bugs_spent = self._nothing_ran = False
        self._shutdown = ShutdownGate()  # paused before the first group forms and between groups

    def run(self) -> int:
        """Run the engine and its monitoring threads, clean up, and return the exit code."""
        install_stop_handler(self._stop_requested.set)
        try:
            self._check_version()
            self.secrets = RunSecrets.read(self.run_dir.record)
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            _record(self.folder, self.node, error, EXIT_NEVER_RETRY)
            self._leave(EXIT_NEVER_RETRY)
            return EXIT_NEVER_RETRY
        if self.engine is Engine.RANKS:
            self._start_forkserver()
        threading.Thread(target=self._watch, args=(os.getppid(),), name="watch", daemon=True).start()
        samples = self.folder / names.NODES / f"node-{self.node}.jsonl"
        energy = partial(EnergyAccount, MachinePower(), self.resources.cpus)  # NVML is slow to import
        heart = heart_file(self.stop_flag, 0)
        watch = IdleWatch(self.run_dir, self.attempt, self.resources.idle_minutes, heart)
        after = watch.look if self.node == 0 and self.resources.gpus else lambda: None
        monitor = Monitor(samples, self.node, self.run_dir.path, heart=heart, energy=energy, after=after)
        monitor.start()
        self.inspector.start(os.getpid())
        if self.node == 0:
            self.sidecars.start(self.run_dir, self.attempt, self.scratch, self.secrets)
        code = EXIT_FAILED
        try:
            code = self._run_engine()
            self._bugs_spent = self.engine is Engine.RANKS and code == EXIT_FAILED  # this engine retries bugs itself
            if code == EXIT_LOST_PEER:
                code = EXIT_FAILED
        except Exception as error:  # an engine that does not start fails the attempt; the error is recorded
            log.exception("the %s engine failed", self.engine.value)
            code = EXIT_TERMINATED if isinstance(error, NotReadyError) else EXIT_FAILED
            _record(self.folder, self.node, error, code)
        finally:
            self._shutdown.begin()
            monitor.stop()
            self._leave(code)
        return code

    def _check_version(self) -> None:
        """Record another version on this node than the run's as an event. Raises ConfigError if it is incompatible."""
        if (versions := other_version(self.run_dir)) is None:
            return
        wanted, here = versions
        self.run_dir.event("other_version", node=self.node, wanted=wanted, here=here, attempt=self.attempt)
        if are_incompatible(wanted, here):
            message = f"the run was submitted with ropewalk {wanted}, but node {self.node} has {here}"
            raise ConfigError(f"{message}; install {wanted} there (on Kubernetes: use an image with it), or submit with {here}")

    def _check_nodes(self) -> None:
        """Check this node and its network, as the other nodes do at the same time."""
        from ropewalk.cluster.agent.node_ring import check_nodes  # noqa: PLC0415 - few runs ask for it

        self._shutdown.pause()
        gpus = self.resources.gpus
        check_nodes(self.run_dir, self.attempt, node=self.node, nodes=self.nodes, address=self.address, gpus=gpus)
        self._shutdown.resume()

    def _run_engine(self) -> int:
        if self.resources.check_nodes:
            self._check_nodes()
        if self.engine is Engine.RANKS:
            from ropewalk.cluster.engines.ranks import RanksNode, run_ranks  # noqa: PLC0415 - only ranks need it

            self._shutdown.pause()
            node = RanksNode(
                run=self.run_dir,
                attempt=self.attempt,
                index=self.node,
                most_nodes=self.nodes.most,
                elastic=self.resources.replaces_nodes,
                ranks_per_node=self.resources.local_world_size,
                address=self.address,
                stop_flag=self.stop_flag,
                gate=self._shutdown,
                hung_seconds=self.run_dir.retries.hung_seconds,
                secrets=self.secrets,
                memory=self.memory,
                processes=self.inspector.ranks,
            )
            return run_ranks(node)
        if self.engine is Engine.RAY:
            from ropewalk.cluster.engines.ray import RayNode, run_ray  # noqa: PLC0415 - only this engine needs it

            return run_ray(
                RayNode(
                    run=self.run_dir,
                    attempt=self.attempt,
                    index=self.node,
                    num_nodes=self.nodes.least,
                    address=self.address,
                    cpus=self.resources.cpus,
                    gpus=self.resources.gpus,
                    stop_flag=self.stop_flag,
                    secrets=self.secrets,
                )
            )
        return run_process(self.run_dir, self.attempt, self.stop_flag, self.secrets) if self.node == 0 else 0

    def _start_forkserver(self) -> None:
        """Import the modules of the ranks and start their fork server, before there are threads and before a group forms.

        A node that joins a running group would otherwise delay it. A stop during the imports is handled after them.
        """
        preload = ["ropewalk.cluster.engines.ranks", *rank_modules(self.run_dir)]
        import_modules(preload)
        if are_imported(preload) and not cuda_is_initialized():  # otherwise the engine fails with the reason
            from ropewalk.cluster.engines.local_ranks import start_forkserver  # noqa: PLC0415 - only ranks need it

            start_forkserver(preload)

    # --- stops: a signal handler only sets a flag

    def _watch(self, parent: int) -> None:
        """Forward stops to the ranks, and end this node when the supervisor is gone or the attempt is over."""
        while True:
            try:
                self._check(parent)
            except OSError as error:
                log.warning("the check of the run's files failed and will be repeated: %s", error)
                time.sleep(WATCH_SECONDS)

    def _check(self, parent: int) -> None:
        if self._stop_requested.wait(WATCH_SECONDS if self._leave_by is None else 0) and self._leave_by is None:
            log.info("stop requested: saving at the next step boundary")
            self.stop_flag.touch()
            self._leave_by = time.monotonic() + self.resources.grace_seconds
            self.run_dir.event("stop_requested", node=self.node, attempt=self.attempt)
        if self._leave_by is not None:
            if self._shutdown.begin_if_nothing_runs():
                log.info("stop requested before the group has formed: nothing to save")
                self._nothing_ran = True
                self._end_all(EXIT_REQUEUE)
            time.sleep(WATCH_SECONDS)
            if time.monotonic() > self._leave_by:
                log.error("no checkpoint within %.0f s of the stop: killing the ranks", self.resources.grace_seconds)
                self._abandon(EXIT_TERMINATED)
        if os.getppid() != parent:
            self._stop_requested.set()  # the supervisor is gone: save and exit
        if self._is_attempt_over():
            log.error("attempt %d is over, but this agent is still running: exiting", self.attempt)
            self._abandon(EXIT_TERMINATED)
        # a late check only costs seconds: the supervisor also ends this agent
        if self._fatal_timer.due() and (self.folder / names.FATAL).exists():
            time.sleep(2.0)  # the ranks of this node notice the broken group and exit by themselves
            self._abandon(EXIT_NEVER_RETRY)

    def _is_attempt_over(self) -> bool:
        """Return True if this attempt has an outcome or a successor."""
        if time.monotonic() < self._next_attempt_check:
            return False
        self._next_attempt_check = time.monotonic() + ATTEMPT_CHECK_SECONDS
        return self.run_dir.outcome(self.attempt) is not None or self.run_dir.attempts()[-1] > self.attempt

    def _abandon(self, code: int) -> None:
        self._shutdown.begin()
        self._end_all(code)

    def _end_all(self, code: int) -> None:
        spared = {os.getpid(), *(sidecar.pid for sidecar in self.sidecars.processes)}
        end(process for process in family(os.getpid()) if process.pid not in spared)
        try:
            self._leave(code)
        finally:
            os._exit(code)

    # --- exit

    def _leave(self, code: int) -> None:
        end(processes_with({STOP_VARIABLE: str(self.stop_flag)}))  # processes that programs left running
        flags = {"bugs_spent": self._bugs_spent, "nothing_ran": self._nothing_ran}
        report = {"node": self.node, "exit_code": code, "ended": time.time(), **flags}
        try:
            write_json(self.folder / names.NODES / f"node-{self.node}.json", report)
        except OSError as error:  # the supervisor falls back on this process's exit code
            log.error("the report of this node could not be written: %s", error)
        self.sidecars.end()
        finish_outputs(OUTPUT_SECONDS)
        for folder in (self.scratch, self.memory):
            if folder is not None:
                remove_scratch(folder)

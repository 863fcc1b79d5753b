"""Start a job's ranks for a test: real processes, real gloo, through the same entry as torchrun's."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from ropewalk.cluster.engines.entry import run_entry
from ropewalk.cluster.process.output import configure_logging, redirect_output
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.registry import find_job
from ropewalk.sharding.checkpoints.stored_tensors import StoredTensors, newest_complete
from tests.fork_server import SERVER
from tests.patience import HANG_SECONDS, MachineClock, Patience, until

LOOK_SECONDS = 0.2  # at the load, meanwhile

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def pretrain_config(data: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": str(data),
        "model": {"config": TINY},
        "seq_len": 32,
        "steps": 8,
        "batch": {"global_batch": 8, "micro_batch": 2},
        "optim": {"lr": 3e-3, "warmup_steps": 2},
        "checkpoint": {"every_steps": 3},
        "validation": {"every_steps": 100, "max_sequences": 5},
        **changes,
    }


def make_run(root: Path, config: dict[str, Any], job: str = "pretrain") -> RunDir:
    return RunDir.create("test", {"job": job, "entry": find_job(job).entry, "config": config}, root)


class Ranks:
    """The rank processes of one attempt."""

    def __init__(self, run: RunDir, processes: list[Any], store: Any) -> None:
        self.run, self.processes, self._store = run, processes, store

    def wait(self, seconds: float = HANG_SECONDS) -> list[int]:
        """Exit codes, in rank order; whoever outlives the time, as a quiet machine counts it, is killed."""
        clock = MachineClock()
        for process in self.processes:
            while process.exitcode is None and clock.look() < seconds:
                process.join(LOOK_SECONDS)
            if process.exitcode is None:
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """SIGKILL to all ranks at once."""
        for process in self.processes:
            process.kill()
        self.wait()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be seen in the run directory."""

        def seen() -> bool:
            there = condition()
            assert there or any(p.is_alive() for p in self.processes) or condition(), log_of(self.run)
            return there

        until(seen, Patience.STEP, lambda: log_of(self.run), look_seconds=0.01)


def start(run: RunDir, ranks: int, **env: str) -> Ranks:
    """The next attempt of a run: rank processes forked from a server that has imported torch."""
    attempt = run.begin_attempt()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for rank in range(ranks):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "OMP_NUM_THREADS": "1",
            **{key: value for key, value in os.environ.items() if key.startswith(("AWS_", "S3_"))},
            **env,
        }
        process = SERVER.Process(target=_rank, args=(run.path, attempt, rank, ranks, variables))
        process.start()
        processes.append(process)
    return Ranks(run, processes, store)


def _rank(path: Path, attempt: int, rank: int, ranks: int, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    run = RunDir(path)
    redirect_output(run.log_dir(attempt) / f"rank-{rank}.log")
    configure_logging(f"rank {rank}")
    flag = run.path / "stop-here"
    context = JobContext(run=run, attempt=attempt, rank=rank, local_rank=rank, world_size=ranks, stop_flag=flag)
    if rank == 0:
        context.fence.claim()
    hook = variables.get("TEST_HOOK")
    if hook:
        getattr(import_module("tests.jobs.hooks"), hook)(context)
    code = run_entry(context)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def launch(run: RunDir, ranks: int, **env: str) -> dict[str, Any]:
    """Run an attempt to its end and return its results; the log is the message if it fails."""
    codes = start(run, ranks, **env).wait()
    assert codes == [0] * ranks, f"{codes}\n{log_of(run)}"
    return run.results()


def log_of(run: RunDir) -> str:
    folder = run.log_dir(run.attempts()[-1])
    return "\n".join(path.read_text()[-4000:] for path in sorted(folder.glob("*.log")))


def events(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.read_events() if event["event"] == kind]


def weights(run: RunDir, step: int | None = None) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, put together in this process."""
    return StoredTensors(*newest_complete(StoragePath(run.checkpoints), step)).read_all()


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def losses(run: RunDir) -> dict[int, float]:
    """Training loss by step, the last writer's word."""
    return {line["step"]: line["train/loss"] for line in run.read_metrics() if "train/loss" in line}

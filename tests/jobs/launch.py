"""Start a job's ranks for a test: real processes, real gloo, through the same entry as torchrun's."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.run_dir import RunDir

REPOSITORY = Path(__file__).resolve().parents[2]

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
    return RunDir.create("test", {"job": job, "entry": f"jobs.{job}:main", "config": config}, root)


def start(run: RunDir, ranks: int, **env: str) -> subprocess.Popen[str]:
    """The next attempt of a run, under torchrun."""
    attempt = run.begin_attempt()
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "cluster.entry"]
    log = (run.log_dir(attempt) / "all.log").open("w")
    return subprocess.Popen(
        [sys.executable, *words, str(run.path), "--attempt", str(attempt)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **env},
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(run: RunDir, ranks: int, **env: str) -> dict[str, Any]:
    """Run an attempt to its end and return its results; the log is the message if it fails."""
    code = start(run, ranks, **env).wait(timeout=120)
    assert code == 0, log_of(run)
    return run.results()


def log_of(run: RunDir) -> str:
    return (run.log_dir(run.attempts()[-1]) / "all.log").read_text()[-6000:]


def losses(run: RunDir) -> dict[int, float]:
    """Training loss by step, the last writer's word."""
    return {line["step"]: line["train/loss"] for line in run.read_metrics() if "train/loss" in line}

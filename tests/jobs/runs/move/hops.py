"""A training that moves from cluster to cluster, beside one that stays, and what both end with."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.cli.known_runs import STATE_VARIABLE
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, losses, pretrain_config, weights
from tests.patience import Patience, until

MIB = 1 << 20
WIDE = {"hidden_size": 128, "intermediate_size": 512}


@contextlib.contextmanager
def following(start: Callable[..., "subprocess.Popen[str]"]) -> Iterator[None]:
    """Run `ropewalk sync --follow`, by what starts a user's command, during the block."""
    process = start("sync", "--follow")
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert process.returncode == 0, out + errors


class Traveller:
    """The command in a folder with clusters of its own, and a training that it moves."""

    def __init__(self, home: Path, clusters: Mapping[str, Mapping[str, Any]], data: Sequence[Path], steps: int) -> None:
        """`data`: where each cluster's mount `corpus` lies on this machine."""
        self.home, self.steps = home, steps
        for folder in data:
            make_dataset(folder / "tokens")
        (home / "clusters.yaml").write_text(yaml.safe_dump(dict(clusters)))
        config = pretrain_config(
            Path("x"), steps=steps, checkpoint={"every_steps": 10_000}, resources={"grace_seconds": 60, "cpus": 1}
        )
        config["model"]["config"] = {**config["model"]["config"], **WIDE}
        config["data"] = "data://corpus/tokens"
        (home / "job.yaml").write_text(yaml.safe_dump(config))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ROPEWALK")}
        self.environment |= {
            "ROPEWALK_CLUSTERS": str(home / "clusters.yaml"),
            "ROPEWALK_RUNS": str(home / "runs"),
            STATE_VARIABLE: str(home / "state"),
            "WANDB_MODE": "disabled",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command."""
        command = [sys.executable, "-P", "-m", "ropewalk.jobs.cli", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.home, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *arguments: str) -> str:
        """Run the command, and return its output."""
        with self.start(*arguments) as process:
            out, errors = process.communicate()
        assert process.returncode == 0, f"{arguments}: {out}\n{errors}"
        return out

    def submit(self, cluster: str) -> str:
        """Submit the training, and return its id."""
        return self("submit", "pretrain", "-c", "job.yaml", "--on", cluster).split()[-1]

    def step(self, run: str) -> int:
        """Return the step of a run, where it is now."""
        return int(json.loads(self("show", run, "--json"))["metrics"].get("step") or 0)

    def move(self, run: str, cluster: str, kills: int, drawn: random.Random) -> dict[str, Any]:
        """Move a run once it has taken steps, by a command that is killed at random moments."""
        before = self.step(run)
        until(lambda: self.step(run) >= before + 3, Patience.RUN, lambda: self("why", run) + self("logs", run))
        for _ in range(kills):
            with self.start("move", run, "--on", cluster, "--json") as process:
                time.sleep(drawn.uniform(1, 6))
                process.kill()
                process.communicate()
        process = self.start("move", run, "--on", cluster, "--json")
        out, errors = process.communicate()
        if process.returncode == 0:
            answer: dict[str, Any] = json.loads(out)
            assert answer["bytes"] <= 1.05 * answer["checkpoint_bytes"] + 8 * MIB, answer  # the code is as large as it is
            return answer
        assert f"is on {cluster} already" in errors, errors  # the last command that was killed had done all
        return {}

    def finish(self, run: str) -> None:
        """Wait for the end of a run."""
        answer = json.loads(self("wait", run, "--json"))
        assert answer["state"] == "SUCCEEDED", answer


def check_same(stayed: RunDir, travelled: RunDir, steps: int) -> None:
    """Compare the final parameters, and every step's loss, of two runs of one configuration."""
    assert equal(weights(stayed, steps), weights(travelled, steps))
    assert losses(stayed) == losses(travelled)
    assert [*losses(travelled)] == list(range(1, steps + 1))

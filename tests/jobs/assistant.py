"""The life of an assistant in three runs, each of which begins with the model of the one before: a finetuned adapter, preferences
(DPO), rewards (GRPO, drawn by workers). Submitted by the command as a user types it, to any cluster.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.spec import RunState
from tests.datapipe.chat.tokenizers import WORDS
from tests.forked import run_forked
from tests.jobs.launch import equal, events, losses, weights
from tests.jobs.training.align.pairs import pairs, write_pairs
from tests.jobs.training.align.rolling import prompts, write_prompts
from tests.jobs.training.finetune.chats import chats, make_base, write_lines
from tests.patience import Patience, until
from tests.slurm.toy import finish, said

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"finetune": 60, "dpo": 60, "grpo": 16}
LORA = {"rank": 4}
REWARD = "def letters(answer, record):\n    return sum(letter.islower() and letter.isascii() for letter in answer) / 8\n"


def set_up(home: Path, profiles: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables by which the command finds its clusters and this machine's runs."""
    (home / "clusters.yaml").write_text(yaml.safe_dump(profiles))
    variables = {"ROPEWALK_RUNS": home / "runs", "ROPEWALK_CLUSTERS": home / "clusters.yaml", "PYTHONPATH": ROOT}
    for name, value in {**variables, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": 1}.items():
        monkeypatch.setenv(name, str(value))


def write_files(folder: Path) -> None:
    """A base model, and what it learns from."""
    make_base(folder / "base", template=None, text=f"{WORDS} says lane rope")
    for part in range(2):
        write_lines(folder / f"chats-{part}.jsonl", chats(40, seed=part))
    write_pairs(folder / "pairs.jsonl.zst", pairs(50))
    write_prompts(folder / "prompts.jsonl", prompts(20))
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o055)


def job_files(folder: Path, rewards: Path) -> dict[str, dict[str, Any]]:
    """The keys of each run, with `folder` as the runs see it and a project with a reward as who submits sees it."""
    common = {"seq_len": 96, "checkpoint": {"every_steps": 3}, "optim": {"lr": 3e-3, "warmup_steps": 2}}
    scored = {"every_steps": 30, "max_sequences": 9, "patience": None, "keep_best": False}
    pairwise = {"batch": {"global_batch": 6, "micro_batch": 2}, "validation": scored, "lora": {**LORA, "dropout": 0.1}}
    # two files and two actors: Ray starts on the node
    finetune = {"data": str(folder / "chats-*.jsonl"), "model": {"path": str(folder / "base")}, "actors": 2}
    finetune |= {"chat": {"template": "chatml"}, "neftune": 5.0}
    grpo = {
        "group_size": 4,
        "max_new_tokens": 8,
        "chunk": 2,
        "workers": 1,
        "rewards": ["judge:letters"],
        "directory": str(rewards),
    }
    results = {
        "finetune": {**common, **pairwise, **finetune},
        "dpo": {**common, **pairwise, "method": "dpo", "data": str(folder / "pairs.jsonl.zst"), "validation_fraction": 0.2},
        "grpo": {
            **common,
            "method": "grpo",
            "data": str(folder / "prompts.jsonl"),
            "lora": LORA,
            "batch": {"global_batch": 8, "micro_batch": 4},
            "validation_fraction": 0.0,
            "grpo": grpo,
        },
    }
    return {name: {**keys, "name": name, "steps": STEPS[name]} for name, keys in results.items()}


class Assistant:
    """The three runs on one cluster, submitted at once: each waits for the one before."""

    def __init__(self, home: Path, folder: Path, cluster: str, resources: dict[str, Any], find: Callable[[str], Path]) -> None:
        """Submit from `home`; `folder` as the runs see it; `find`: where this machine sees a run."""
        rewards = home / "project"
        rewards.mkdir(exist_ok=True)
        (rewards / "judge.py").write_text(REWARD)
        self.runs: dict[str, RunDir] = {}
        for name, keys in job_files(folder, rewards).items():
            arguments = ["submit", "finetune" if name == "finetune" else "align", "-c", f"{name}.yaml", "--on", cluster]
            wanted = {**keys, "resources": resources}
            if self.runs:
                before = list(self.runs.values())[-1].id
                wanted["model"], arguments = {"run": before}, [*arguments, "--after", before]
            (home / f"{name}.yaml").write_text(yaml.safe_dump(wanted))
            done = run_forked(module_command("ropewalk.jobs.cli", *arguments), cwd=home)
            assert done.returncode == 0, done.stderr
            self.runs[name] = RunDir(find(done.stdout.strip()))

    def reach(self, name: str, step: int) -> RunDir:
        """Wait until a run has taken a step in its newest attempt."""
        run = self.runs[name]

        def reached() -> bool:
            for item in self.runs.values():
                outcome = item.last_outcome()
                assert outcome is None or not outcome.state.final or outcome.state is RunState.SUCCEEDED, said(item)
            newest = (run.attempts() or [0])[-1]
            return any(line["step"] >= step and line["attempt"] == newest for line in run.read_metrics())

        until(reached, Patience.CLUSTER, lambda: said(run))
        assert run.last_outcome() is None or not run.last_outcome().state.final, "it was too quick to be disturbed"  # type: ignore[union-attr]
        return run

    def finish(self) -> None:
        """Wait until all have succeeded, the first with data that Ray has prepared."""
        for run in self.runs.values():
            assert finish(run, Patience.CLUSTER).state is RunState.SUCCEEDED, said(run)
        assert events(self.runs["finetune"], "actors"), said(self.runs["finetune"])


def check_equal(first: Assistant, other: Assistant) -> None:
    """Both have learnt the same, bit by bit."""
    for name, run in first.runs.items():
        assert losses(run) == losses(other.runs[name]), name
        assert equal(weights(run), weights(other.runs[name])), name
        assert max(losses(run)) == STEPS[name]

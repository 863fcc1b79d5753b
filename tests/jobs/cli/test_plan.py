"""`--dry-run` prints a plan, `--script` the script, and `check` reads a job file alone."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.loop.architecture.model_config import model_config
from ropewalk.jobs.training.loop.forecast import size
from ropewalk.jobs.training.loop.forecast.size import SizeRequest, measure, model_size
from ropewalk.jobs.training.loop.model_keys import LoraConfig, ModelConfig
from tests.forked import FORKING
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import TINY
from tests.jobs.shell import Shell

CONFIGS = Path(__file__).resolve().parents[3] / "jobs/configs"
FILTER = "from ropewalk.datapipe.filters.filter import Filter\n\nclass Quiet(Filter):\n    def judge(self, batch): ...\n"
SWEEP = {
    **{"run": "sweep", "job": "pretrain", "metric": "validation/loss", "search": "grid"},
    "base": {"data": "data", "steps": 100, "seq_len": 16, "validation": {"every_steps": 10}},
    "space": {"optim.lr": {"grid": [0.001, 0.01]}, "seed": {"grid": [1, 2, 3, 4]}},
}


def rows(page: str) -> dict[str, str]:
    """The rows of a plan: name and text."""
    matches = [re.fullmatch(r"  (\S.*?)  +(.*?) *", line) for line in page.splitlines()]
    return {match[1]: match[2] for match in matches if match}


def test_the_plan_of_a_training(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(shell.home / "text")
    monkeypatch.setenv("ROPEWALK_RUNS", str(shell.home / "elsewhere"))
    keys = ("steps=300", "seq_len=32", "model.preset=tiny", "resources.nodes=1..2", "resources.ranks_per_node=4", "seed=7")
    page = rows(shell("submit", "pretrain", "data=text", *keys, "batch.global_batch=40", "--dry-run", "--on", "slow"))
    tiny = ModelConfig(preset="tiny")
    model = AutoModelForCausalLM.from_config(model_config(tiny, vocabulary=257, end_of_document=256, seq_len=32))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert page["parameters"] == f"{parameters:,}"
    assert (page["data"], page["steps"], page["seed"]) == (str(shell.home / "text"), "300", "7")
    assert "optim.warmup_steps" not in page, "it is the default"
    assert page["tokens a step"] == "1,280: 40 sequences of 32"
    assert page["tokens in all"].startswith("384,000 in 300 steps, ")
    assert page["accumulation"] == "micro-batches of up to 4 sequences a step on each rank: 3 with 4 ranks or 2 with 8 ranks"
    assert page["processes"] == "4..8 ranks on 1..2 nodes, on the CPU (resources.gpus=0)"
    assert re.match(r"about [\d.]+ MiB on each of 4 ranks, besides an empty rank: parameters [\d.]+ KiB, ", page["memory"])
    assert page["fits"] == "unknown: set resources.memory_gib, the memory of a node"
    assert re.fullmatch(r"[\d.]+ MiB from each rank within its node", page["traffic a step"])
    mib = 12 * parameters / 2**20
    assert f"about {mib:.1f} MiB each, {3 * mib:.1f} MiB on disk, written in about 0.0 s" in page["checkpoints"]
    assert page["directory"] == f"{shell.home}/elsewhere/pretrain-DATE"
    assert page["start"] == "as soon as slow has room"
    assert "copies" not in page
    copies = ("parallel.replicate=auto", "parallel.shard_nodes=2", "resources.nodes=1..4")
    page = rows(shell("submit", "pretrain", "data=text", *keys, *copies, "--dry-run", "--on", "slow"))
    assert page["copies"] == (
        "1 copy on 4 ranks each with 1 node or 2 copies on 8 ranks each with 4 nodes; spare ranks: 4 with 3 nodes"
    )
    assert page["accumulation"].endswith("2 with 4 ranks or 1 with 16 ranks")
    assert not (shell.home / "elsewhere").exists()


def test_the_plan_counts_what_an_adapter_trains() -> None:
    request = SizeRequest(model=ModelConfig(config={**TINY, "vocab_size": 300}), vocabulary=300, seq_len=32)
    whole, adapted = measure(request), measure(request.model_copy(update={"lora": LoraConfig(rank=2)}))
    assert whole.trained == whole.parameters
    assert adapted.trained == adapted.parameters - whole.parameters > 0


def test_a_model_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "subprocess", FORKING)
    request = SizeRequest(model=ModelConfig(preset="tiny"), vocabulary=300, seq_len=32)
    assert model_size(request) == measure(request)


def test_the_plan_says_why_a_model_was_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    request = SizeRequest(model=ModelConfig(config={"model_type": "nothing"}), vocabulary=300, seq_len=32)
    with pytest.raises(ConfigError) as error:
        measure(request)
    fails = [sys.executable, "-c", f"raise SystemExit({str(error.value)!r})"]  # as fast as its process is slow
    monkeypatch.setattr(size, "module_command", lambda _: fails)
    answer = model_size(request)
    assert isinstance(answer, str)
    assert answer.startswith("not counted: ")
    assert "'nothing'" in answer


def test_the_plan_of_a_sweep_has_its_first_trials(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CLIENT_MODE", "0")  # ray sets it when it is imported
    Path("sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    page = rows(shell("run", "-c", "sweep.yaml", "--dry-run"))
    assert page["trials"] == "8 runs of pretrain; search=grid, scheduler=fifo, minimize validation/loss"
    assert [page[f"trial {number}"] for number in range(5)] == [
        "optim.lr=0.001 seed=1",
        "optim.lr=0.01 seed=1",
        "optim.lr=0.001 seed=2",
        "optim.lr=0.01 seed=2",
        "optim.lr=0.001 seed=3",
    ]
    assert page["each: tokens a step"] == "512: 32 sequences of 16"
    assert page["each: processes"] == "1 rank on 1 node, on the CPU (resources.gpus=0)"
    assert page["start"] == "at once, on this machine"


def test_the_plan_of_a_pipeline_has_its_steps(shell: Shell) -> None:
    steps = {
        "print": {"job": "command", "config": {"command": ["echo", "a"], "launch": "nodes", "resources": {"nodes": 2}}},
        "train": {
            "job": "pretrain",
            "config": {"data": "data", "steps": 9, "seq_len": 16, "resources": {"spare_nodes": 1}},
            "needs": ["print"],
        },
    }
    Path("pipe.yaml").write_text(yaml.safe_dump({"run": "pipeline", "steps": steps}))
    page = rows(shell("run", "-c", "pipe.yaml", "--on", "good", "--dry-run"))
    assert page["the step print"] == "command: 2 ranks on 2 nodes, on the CPU (resources.gpus=0)"
    assert (
        page["the step train, once print succeeded"]
        == "pretrain: 1 rank on 1 node and 1 spare node, on the CPU (resources.gpus=0)"
    )


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_check_needs_no_data(shell: Shell, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])  # a pipeline names other job files
    assert ": a valid file of the job " in shell("check", "-c", f"jobs/configs/{file}")


def test_check_names_each_mistake_in_a_line(shell: Shell) -> None:
    values: dict[str, Any] = {"run": "pretrain", "data": "nowhere", "steps": "many", "lr": 1, "batch": {"globl_batch": 1}}
    Path("job.yaml").write_text(yaml.safe_dump({**values, "optim": {"eps": "small", "lr": -1}}))
    shell("check", "-c", "job.yaml", expect=2)
    lines = shell.err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("error: job.yaml: ") for line in lines)
    assert "did you mean 'optim.lr'?" in shell.err
    Path("job.yaml").write_text("run: pretrain\ndata: nowhere\nsteps: 10\n")
    assert "with 2 keys that differ" in shell("check", "-c", "job.yaml")
    assert "set at most 9" in shell.mistake("check", "-c", "job.yaml", "optim.warmup_steps=10")
    assert "to a multiple of 2" in shell.mistake("check", "-c", "job.yaml", "parallel.replicate=2", "resources.gpus=3")
    assert "ropewalk check -c FILE.yaml" in shell.mistake("check", "pretrain")
    Path("job.yaml").write_text("data: nowhere\nsteps: 10\n")
    assert "names no job; type `ropewalk check pretrain -c job.yaml`" in shell.mistake("check", "-c", "job.yaml")


@pytest.mark.parametrize("command", [("check",), ("run", "--dry-run")])
def test_your_modules_are_imported_and_it_is_said(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    Path("a.jsonl").write_text(json.dumps({"text": "x" * 600}) + "\n")
    Path("quiet.py").write_text(FILTER)
    monkeypatch.syspath_prepend(str(shell.home))
    Path("job.yaml").write_text("run: preprocess\ninput: a.jsonl\noutput: out\ntokenizer: {train: 512}\nfilters: [quiet:Quiet]\n")
    answer = " ".join(shell(*command, "-c", "job.yaml").split())
    assert re.search(rf"your modules( were imported)? from {shell.home}", answer)
    Path("job.yaml").write_text("run: preprocess\ninput: a.jsonl\noutput: out\ntokenizer: {train: 512}\nfilters: [quiet:Quite]\n")
    assert "Quite" in shell.mistake(*command, "-c", "job.yaml")

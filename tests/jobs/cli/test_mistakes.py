"""Mistakes that users make: each is answered before anything is submitted, in one line that names the remedy."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import ropewalk
from ropewalk.cluster.errors import RopewalkError
from tests.jobs.corpus import make_dataset
from tests.jobs.shell import Shell

PRETRAIN = ("run", "pretrain", "data=data", "steps=10", "seq_len=16")
SWEEP = {
    **{"job": "pretrain", "base": {"data": "data", "steps": 10, "seq_len": 16}, "metric": "validation/loss", "trials": 2},
    "space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
}
STEPS = {
    "tokens": {"job": "preprocess", "config": {"input": "docs", "output": "tokens", "tokenizer": {"path": "model"}}},
    "train": {"job": "pretrain", "config": {"data": "tokens", "steps": 10}},
}
PAIR = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@dataclass(frozen=True)
class Mistake:
    """A command with its files besides those of `home`, and a part of the answer that names the remedy."""

    typed: tuple[str, ...]
    answer: str
    files: dict[str, Any] = field(default_factory=dict)  # written as YAML, or as they are
    variables: dict[str, str] = field(default_factory=dict)


MISTAKES = {
    # --- the command line
    "a job file that is not there": Mistake(("run", "pretrain", "-c", "pretran.yaml"), "did you mean pretrain.yaml?"),
    "a folder as the job file": Mistake(("run", "pretrain", "-c", "docs"), "docs: is a directory; name a YAML file"),
    "nothing but the job": Mistake(("run", "pretrain"), "steps: required, and not set; data: required, and not set"),
    "no job, and a file that names none": Mistake(("run", "-c", "pretrain.yaml"), "type `ropewalk run JOB -c pretrain.yaml`"),
    "a misspelt job": Mistake(("run", "pretrian"), "did you mean 'pretrain'?"),
    "a job as a command": Mistake(("evaluate", "model=model"), "`ropewalk run evaluate ...` starts one"),
    "a job file of another job": Mistake(
        ("run", "finetune", "-c", "named.yaml"), "`ropewalk run -c named.yaml` runs it", {"named.yaml": {"run": "pretrain"}}
    ),
    "an override as an option": Mistake((*PRETRAIN, "--steps", "20"), "write steps=20"),
    "an override as an option with =": Mistake((*PRETRAIN, "--seq_len=8"), "write seq_len=8"),
    "an override of two words": Mistake((*PRETRAIN, "seed", "=", "3"), "'seed' is not an override; write key=value"),
    "a job file without -c": Mistake(("run", "pretrain", "pretrain.yaml"), "write --config pretrain.yaml"),
    "a program for a job that runs none": Mistake((*PRETRAIN, "--", "python", "a.py"), "run command -- python a.py"),
    "no program": Mistake(("run", "command"), "run command -- python train.py"),
    "an unknown cluster": Mistake((*PRETRAIN, "--on", "mars"), "known: "),
    "an unknown run": Mistake(("show", "nobody"), "no run 'nobody'"),
    "a run to wait for that is not there": Mistake(("submit", *PRETRAIN[1:], "--after", "nobody"), "no run 'nobody'"),
    "--each without values": Mistake(("submit", *PRETRAIN[1:], "--each", "seed"), "such as seed=1..8"),
    "--each with a descending range": Mistake(("submit", *PRETRAIN[1:], "--each", "seed=8..1"), "write 1..8"),
    "--each of resources": Mistake(("submit", *PRETRAIN[1:], "--each", "resources.gpus=1,2"), "submit them one by one"),
    "a runs directory that is a file": Mistake(PRETRAIN, "not a directory", variables={"ROPEWALK_RUNS": "pretrain.yaml"}),
    # --- keys and values
    "a key without its section": Mistake((*PRETRAIN, "lr=1e-3"), "did you mean 'optim.lr'?"),
    "a misspelt key": Mistake((*PRETRAIN, "optim.leraning_rate=1e-3"), "keys of optim: optim.base_width"),
    "gpus without resources": Mistake((*PRETRAIN, "gpus=8"), "did you mean 'resources.gpus'?"),
    "a time limit without its unit": Mistake(
        (*PRETRAIN, "resources.time_limit=60"), "did you mean 'resources.time_limit_minutes'?"
    ),
    "a text for a number": Mistake((*PRETRAIN, "optim.lr=abc"), "optim.lr: must be a number, not 'abc'"),
    "a negative count": Mistake((*PRETRAIN, "steps=-5"), "steps: must be at least 1, not -5"),
    "an unknown value": Mistake((*PRETRAIN, "precision.compute=fp16"), "must be 'auto', 'bf16' or 'fp32', not 'fp16'"),
    "a preset as the model": Mistake((*PRETRAIN, "model=tiny"), "model.preset=tiny"),
    "a directory as the model": Mistake((*PRETRAIN, "model=./model"), "model.path=./model"),
    "a rank as lora": Mistake(("run", "finetune", "model.path=model", "data=chats.jsonl", "steps=10", "lora=16"), "lora.rank=16"),
    "a path over the preset of the file": Mistake(
        ("run", "pretrain", "-c", "pretrain.yaml", "model.path=model"),
        "not preset and path; to replace what a job file sets, write 'model={path: ",
    ),
    "an unknown preset": Mistake(
        (*PRETRAIN, "model.preset=large"),
        "must be 'tiny', 'small', 'smollm-135m', '150m', '400m', '1b', '3b' or '8b', not 'large'",
    ),
    "three mistakes in one file": Mistake(
        ("run", "pretrain", "-c", "three.yaml"),
        "batch.globl_batch",
        {"three.yaml": {"data": "data", "steps": "many", "lr": 1, "batch": {"globl_batch": 1}}},
    ),
    # --- YAML
    "a bracket that is not closed": Mistake(
        ("run", "pretrain", "-c", "bad.yaml"), "bad.yaml line 2: not YAML", {"bad.yaml": "data: [a\n"}
    ),
    "a tab": Mistake(("run", "pretrain", "-c", "bad.yaml"), "bad.yaml line 2: not YAML", {"bad.yaml": "optim:\n\tlr: 1\n"}),
    "a list": Mistake(
        ("run", "pretrain", "-c", "bad.yaml"), "must be a mapping of keys to values, not a list", {"bad.yaml": "- a\n"}
    ),
    "a sentence": Mistake(
        ("run", "pretrain", "-c", "bad.yaml"), "must be a mapping of keys to values, not 'hello'", {"bad.yaml": "hello\n"}
    ),
    "a binary file": Mistake(
        ("run", "pretrain", "-c", "bad.yaml"), "bad.yaml: is not a text file", {"bad.yaml": b"\xff\xfe\x00\x80"}
    ),
    "a key twice": Mistake(("run", "pretrain", "-c", "bad.yaml"), "steps", {"bad.yaml": "steps: 1\nsteps: 2\n"}),
    # --- data
    "data that is not there": Mistake((*PRETRAIN, "data=nowhere"), "make it with `ropewalk run preprocess output="),
    "documents as data": Mistake((*PRETRAIN, "data=docs"), "`ropewalk run preprocess input="),
    "a file of documents as data": Mistake((*PRETRAIN, "data=docs/a.jsonl"), "`ropewalk run preprocess input="),
    "an empty list of data": Mistake((*PRETRAIN, "data=[]"), "name at least one data set"),
    "sequences longer than the data": Mistake((*PRETRAIN, "seq_len=100000"), "set a smaller seq_len, or preprocess more text"),
    "an input that is not read": Mistake(
        ("run", "preprocess", "input=pretrain.yaml", "output=out", "tokenizer.train=512"), "narrow the pattern to one of *.jsonl"
    ),
    "documents with another key": Mistake(
        ("run", "preprocess", "input=pairs.jsonl", "output=out", "tokenizer.train=512"),
        "have no key 'text'; set text_key to one of chosen, prompt, rejected",
    ),
    "a glob without files": Mistake(
        ("run", "preprocess", "input=docs/*.txt", "output=out", "tokenizer.train=512"), "use ** to include subdirectories"
    ),
    "an output inside the input": Mistake(
        ("run", "preprocess", "input=docs", "output=docs/out", "tokenizer.train=512"), "choose a directory outside"
    ),
    "an output made with other settings": Mistake(
        ("run", "preprocess", "input=docs", "output=data", "tokenizer.train=512"), "choose another output, or delete it"
    ),
    "more tokens than text": Mistake(
        ("run", "preprocess", "input=docs", "output=out", "tokenizer.train=8192"), "set a smaller vocabulary"
    ),
    "an English name of a language": Mistake(
        ("run", "preprocess", "input=docs", "output=out", "tokenizer.train=512", "language={keep: [english]}"),
        "write ISO 639 codes such as en",
    ),
    "a misspelt filter": Mistake(
        ("run", "preprocess", "input=docs", "output=out", "tokenizer.train=512", "filters=[gophr_quality]"),
        "did you mean 'gopher_quality'?",
    ),
    "preference pairs for finetune": Mistake(
        ("run", "finetune", "model.path=model", "data=pairs.jsonl", "steps=10"), "`ropewalk run align data="
    ),
    "conversations for align": Mistake(
        ("run", "align", "model.path=model", "data=chats.jsonl", "steps=10"), "`ropewalk run finetune data="
    ),
    "documents for finetune": Mistake(
        ("run", "finetune", "model.path=model", "data=docs", "steps=10"), "make a data set of them with `ropewalk run preprocess`"
    ),
    "tokens for finetune": Mistake(
        ("run", "finetune", "model.path=model", "data=data", "steps=10"), "`ropewalk run pretrain data="
    ),
    # --- models
    "a model that is not there": Mistake((*PRETRAIN, "model={path: ./nowhere}"), "model.path: "),
    "a model without config.json": Mistake(
        ("run", "finetune", "model.path=docs", "data=chats.jsonl", "steps=10"), "model.path: "
    ),
    "a model with another vocabulary": Mistake((*PRETRAIN, "model={path: model}"), "tokenizer.path set to the model's directory"),
    "more tokens than the model has positions": Mistake(
        ("run", "finetune", "model.path=model", "data=chats.jsonl", "steps=10", "seq_len=4096"), "the model's 64 positions"
    ),
    "a preset to finetune": Mistake(
        ("run", "finetune", "model.preset=tiny", "data=chats.jsonl", "steps=10"), "set tokenizer, model.path or model.run"
    ),
    "nothing to evaluate": Mistake(("run", "evaluate", "model=model"), "name `data` (a data set of preprocess) or `tasks`"),
    "a gate that cannot be read": Mistake(
        ("run", "evaluate", "model=model", "data=data", "require={loss: 3}"), "examples: '<= 0.6'"
    ),
    # --- ranks
    "more GPUs than this machine has": Mistake((*PRETRAIN, "resources.gpus=8"), "set resources.gpus=0"),
    "GPUs that ranks cannot share": Mistake((*PRETRAIN, "resources.gpus=3", "resources.ranks_per_node=2"), "set gpus=2"),
    "copies that do not divide the ranks": Mistake(
        (*PRETRAIN, "parallel.replicate=2", "resources.ranks_per_node=3"), "to a multiple of 2"
    ),
    "copies that one rank cannot have": Mistake((*PRETRAIN, "parallel.replicate=2"), "to a multiple of 2"),
    "a kernel of attention that a CPU lacks": Mistake((*PRETRAIN, "attention=flex"), "flex computes no gradients on CPUs"),
    "a tensor group that one rank cannot be": Mistake((*PRETRAIN, "parallel.tensor=2"), "which must not span nodes"),
    "tensor parallelism of heads that do not divide": Mistake(
        (*PRETRAIN, "parallel.tensor=2", "resources.ranks_per_node=2"), "2 does not divide the model's 3 num_attention_heads"
    ),
    "pipeline parallelism": Mistake((*PRETRAIN, "parallel.pipeline=2"), "pipeline parallelism is not supported"),
    "a falling range of nodes": Mistake((*PRETRAIN, "resources.nodes=4..2"), "a range must rise, such as 1..4"),
    "a spare node of a job that does not train": Mistake(
        ("run", "evaluate", "model=model", "data=data", "resources.spare_nodes=1"), "only jobs that train can use a spare node"
    ),
    "a warm-up as long as the run": Mistake((*PRETRAIN, "optim.warmup_steps=20"), "set at most 9"),
    # --- sweeps and pipelines
    "a metric that the job does not report": Mistake(
        ("run", "sweep", "-c", "sweep.yaml", "metric=val_loss"), "did you mean 'validation/loss'?"
    ),
    "a misspelt range": Mistake(
        ("run", "sweep", "-c", "bad.yaml"),
        "did you mean 'space.optim.lr.loguniform'?",
        {"bad.yaml": {**SWEEP, "space": {"optim.lr": {"loguniforme": [1e-4, 1e-2]}}}},
    ),
    "a scheduler that could never decide": Mistake(
        ("run", "sweep", "-c", "sweep.yaml", "scheduler=asha"), "set base.validation.every_steps=1"
    ),
    "a searched warm-up that is too long": Mistake(
        ("run", "sweep", "-c", "bad.yaml"),
        "with optim.warmup_steps=10",
        {"bad.yaml": {**SWEEP, "space": {"optim.warmup_steps": {"choice": [5, 10]}}}},
    ),
    "a step that is not there": Mistake(
        ("run", "pipeline", "-c", "bad.yaml"),
        "steps: tokens, train",
        {"bad.yaml": {"steps": {**STEPS, "train": {**STEPS["train"], "needs": ["scores"]}}}},
    ),
    "a misspelt step as data": Mistake(
        ("run", "pipeline", "-c", "bad.yaml"),
        "did you mean the step 'tokens'?",
        {"bad.yaml": {"steps": {**STEPS, "train": {"job": "pretrain", "config": {"data": "tokns", "steps": 10}}}}},
    ),
    "a misspelt step in braces": Mistake(
        ("run", "pipeline", "-c", "bad.yaml"),
        "did you mean {tokens.run}?",
        {"bad.yaml": {"steps": {**STEPS, "note": {"job": "command", "config": {"command": ["echo", "{tokns.run}"]}}}}},
    ),
    # --- clusters
    "a misspelt backend": Mistake(
        (*PRETRAIN, "--on", "big"), "did you mean 'slurm'?", {"clusters.yaml": {"big": {"backend": "slurmm", "partition": "gpu"}}}
    ),
    "a misspelt key of a profile": Mistake(
        (*PRETRAIN, "--on", "big"), "partition", {"clusters.yaml": {"big": {"backend": "slurm", "partitoin": "gpu"}}}
    ),
    "no kubeconfig": Mistake(
        (*PRETRAIN, "--on", "k8s", "resources.gpus=0"),
        "set kubeconfig in the profile, or $KUBECONFIG",
        variables={"KUBECONFIG": "none"},
    ),
}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def home(shell: Shell, data_set: Path) -> Path:
    """A folder with a data set, documents, a model, conversations, pairs, and job files."""
    folder = shell.home
    shutil.rmtree(folder / "data")
    shutil.copytree(data_set, folder / "data")
    (folder / "docs").mkdir()
    (folder / "docs/a.jsonl").write_text(json.dumps({"text": "a rope is laid from strands"}) + "\n")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(
        json.dumps({"model_type": "llama", "vocab_size": 9000, "max_position_embeddings": 64})
    )
    (folder / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n")
    (folder / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    (folder / "pretrain.yaml").write_text("data: data\nsteps: 10\nseq_len: 16\nmodel: {preset: tiny}\n")
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_its_remedy_before_submission(
    shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    mistake = MISTAKES[name]
    for path, content in mistake.files.items():
        if isinstance(content, bytes):
            (home / path).write_bytes(content)
        else:
            (home / path).write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    for variable, value in mistake.variables.items():
        monkeypatch.setenv(variable, value)
    assert mistake.answer in shell.mistake(*mistake.typed)
    assert not (home / "runs").exists()


def add(first: int, b: int) -> int:
    return first + b


PROGRAMS: dict[str, tuple[Callable[[], Any], str]] = {
    "a keyword of the function": (lambda: ropewalk.submit(add, 3, b=4, on="slow"), "kwargs={'b': 4}"),
    "iterables of unequal lengths": (lambda: ropewalk.map(add, [1, 2], [3], on="slow"), "the iterables have 2, 1 items"),
    "a function without a name": (lambda: ropewalk.submit(lambda: 1, on="slow"), "by_value=True"),
    "a misspelt cluster": (lambda: ropewalk.submit(add, 1, 2, on="slwo"), "known: bad, closed, good"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_mistake_in_a_program_is_a_short_error(home: Path, name: str) -> None:
    call, answer = PROGRAMS[name]
    with pytest.raises(RopewalkError) as error:
        call()
    assert answer in str(error.value)
    assert "\n" not in str(error.value)
    assert not (home / "runs").exists()


def test_a_finished_run_is_continued_by_a_new_one(shell: Shell, home: Path) -> None:
    run = shell("submit", *PRETRAIN[1:], "--on", "good").strip()
    answer = shell.mistake("resume", run, "steps=20")
    assert f"`ropewalk run pretrain ... start_from.run={run} steps=MORE`" in answer


def test_there_are_at_least_60_of_them() -> None:
    assert len(MISTAKES) + len(PROGRAMS) + 1 >= 60

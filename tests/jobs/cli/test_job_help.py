"""`ropewalk run JOB --help` and `ropewalk help KEY`: what they print is true, complete and fits the terminal."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import load_config, parse_yaml, walk_keys
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.cli.job_keys import Key, all_keys, keys_of, usual_keys
from ropewalk.jobs.registry import JOBS, config_of, find_job
from ropewalk.jobs.runs.submit.records import make_record
from ropewalk.jobs.training.loop.architecture.model_config import model_config
from ropewalk.jobs.training.loop.model_keys import PRESETS, ModelConfig, Preset
from tests.jobs.shell import Shell

KEY = re.compile(r"^([a-z_]+(?:\.[a-z_0-9]+)*)  ")
HEADING = re.compile(r"^(Usual keys|Top-level keys|[a-z_]+: .*)$")
END = re.compile(r"^\d+ keys in all: ")

# the shortest file of each job
REQUIRED: dict[str, dict[str, Any]] = {
    "preprocess": {"input": "docs", "output": "out", "tokenizer": {"train": 512}},
    "pretrain": {"data": "data", "steps": 100},
    "align": {"model": {"path": "model"}, "data": "pairs.jsonl", "steps": 100},
    "finetune": {"model": {"path": "model"}, "data": "chats.jsonl", "steps": 100},
    "answers": {"endpoint": "http://127.0.0.1:8000", "prompts": "prompts.jsonl", "output": "answers.jsonl"},
    "distill": {"teacher": "model", "student": {"preset": "tiny"}, "data": "data", "steps": 100},
    "evaluate": {"model": "model", "data": "data"},
    "audit": {"model": "model", "subgroups": {"path": "groups.jsonl"}},
    "compress": {"model": "model", "data": "data", "methods": ["cast"]},
    "collect": {"watch": "serving"},
    "refresh": {
        **{"watch": "serving", "train": {"steps": 1}},
        "gate": {"evaluate": {"data": "data", "require": {"loss": "<= 3"}}},
    },
    "serve": {"model": "model"},
    "command": {"command": ["python", "train.py"]},
    "function": {"function": "mylab:train"},
    "dev": {"authorized": "ssh-ed25519 AAAA"},
    "sweep": {
        **{"job": "pretrain", "base": {"data": "data", "steps": 100}, "metric": "validation/loss"},
        "space": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
    },
    "pipeline": {"steps": {"tokens": {"job": "command", "config": {"command": ["true"]}}}},
}
# keys whose default depends on other keys, for which help has a text
DEPENDENT = {
    "pretrain": {"optim.warmup_steps"},
    "distill": {"optim.warmup_steps"},
    "align": {
        "optim.lr",
        "optim.warmup_steps",
        "validation.every_steps",
        "validation.max_sequences",
        "validation.patience",
        "grpo.directory",
    },
    "finetune": {"optim.lr", "optim.warmup_steps", "validation.every_steps", "validation.max_sequences"},
    "command": {"name", "directory"},
    "function": {"directory"},
    "dev": {"directory"},
    "sweep": {"search", "trials"},
}
# overrides that set sections in which something is required; the others may be empty
SECTIONS = {
    "decontaminate": ["decontaminate.against=items.jsonl"],
    "samples": ["samples.prompts=[Once]"],
    "start_from": ["start_from.run=run"],
    "student.prune": ["student.preset=null", "student.prune.layers=2"],
    "share": ["share.groups=2"],
    "subgroups": ["subgroups.path=groups.jsonl"],
    "prompts": ["prompts.path=prompts.jsonl"],
    "contamination": ["contamination.data=data"],
    "memorization": ["memorization.data=data"],
    "calibration": ["calibration.path=questions.jsonl"],
    "mitigation.mixture": ["mitigation.mixture.data=[{path: a}, {path: b}]", "mitigation.mixture.groups=[x, y]"],
    "packages": ["packages.uv=uv.lock"],
    "replay": ["replay.data=chats.jsonl"],
    "trigger.drift": ["trigger.drift.reference=texts.jsonl"],
    "auth": ["auth.variable=TOKEN"],
    "tls": ["tls.cert=cert.pem", "tls.key=key.pem"],
    "capture": ["auth.variable=TOKEN", "capture={}"],
}


@pytest.fixture(params=JOBS)
def job(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def lines(shell: Shell, monkeypatch: pytest.MonkeyPatch, job: str, columns: int, *options: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    return [line.rstrip() for line in shell("run", job, "--help", *options).splitlines()]


def entries(page: list[str]) -> Iterator[tuple[str, str, str]]:
    """(section, key, its text on one line) in the order of the page."""
    section, key, text = "", "", ""
    for line in [*page, ""]:
        if key and (not line.startswith(" ") or not line):
            yield section, key, " ".join(text.split())
            key = ""
        if HEADING.match(line):
            section = line.partition(":")[0]
        elif match := KEY.match(line):
            key, text = match[1], line[match.end() :]
        elif key:
            text += line if text.endswith(" ") else f" {line}"


def resolved(job: str, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration in the run.yaml of a job file."""
    config = load_config(config_of(find_job(job)), values, overrides)
    if job not in {"serve", "refresh"}:  # these only replace the names of models and runs, which do not exist here
        config = config.resolved()
    record: dict[str, Any] = make_record(job, config, "local", {})["config"]
    return record


def value_of(record: Any, name: str) -> Any:
    for part in name.split("."):
        record = record[part]
    return record


def differences(job: str, keys: list[Key], overrides: Sequence[str] = ()) -> list[str]:
    """Keys that neither the shortest file of a job nor the overrides set, whose printed default is not the one in run.yaml."""
    record = resolved(job, REQUIRED[job], overrides)
    written = [*_flat(REQUIRED[job]), *(override.partition("=")[0] for override in overrides)]
    others = [key for key in keys if not key.in_words and not any(f"{key.name}.".startswith(f"{name}.") for name in written)]
    printed = {key.name: parse_yaml(f"value: {key.default}", key.name)["value"] for key in others}
    return [
        f"{name}: {value!r}, in the file {value_of(record, name)!r}"
        for name, value in printed.items()
        if value_of(record, name) != (None if value == "unset" else value)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and name not in {"base", "space", "steps", "train", "evaluate"}:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_printed_defaults_are_those_of_the_resolved_file(job: str) -> None:
    keys = keys_of(config_of(find_job(job)))
    assert {key.name for key in keys if key.in_words} == DEPENDENT.get(job, set())
    assert differences(job, [key for key in keys if not key.condition]) == []


def test_printed_defaults_of_sections_are_those_of_a_file_with_the_section(job: str) -> None:
    keys = keys_of(config_of(find_job(job)))
    for section in dict.fromkeys(key.condition.removeprefix(" with ") for key in keys if key.condition):
        inside = [key for key in keys if key.condition == f" with {section}"]
        assert differences(job, inside, SECTIONS.get(section, [f"{section}={{}}"])) == []


@pytest.mark.parametrize("job", ["finetune", "align"])
def test_defaults_that_depend_on_other_keys_are_as_the_text_says(job: str) -> None:
    texts = {key.name: str(key.default) for key in keys_of(config_of(find_job(job)))}
    plain, adapted = resolved(job, REQUIRED[job]), resolved(job, {**REQUIRED[job], "lora": {}})
    without, _, with_lora = texts["optim.lr"].partition(", with lora ")
    assert (plain["optim"]["lr"], adapted["optim"]["lr"]) == (float(without), float(with_lora))
    long = resolved(job, {**REQUIRED[job], "steps": 2000})["validation"]
    assert texts["validation.every_steps"].startswith("for 20 validations per run")
    assert texts["validation.max_sequences"].startswith("half of the samples between two validations, 16 to 256")
    assert (long["every_steps"], long["max_sequences"], plain["validation"]["max_sequences"]) == (100, 256, 80)


def test_defaults_of_grpo_are_as_the_text_says() -> None:
    texts = {key.name: str(key.default) for key in keys_of(config_of(find_job("align")))}
    validation = resolved("align", {**REQUIRED["align"], "method": "grpo", "steps": 2000})["validation"]
    assert texts["validation.every_steps"].endswith(f"with grpo {2000 // validation['every_steps']}")
    assert texts["validation.max_sequences"].endswith(f"with grpo {validation['max_sequences']}")
    assert (texts["validation.patience"], validation["patience"]) == ("3, with grpo unset", None)
    assert (
        resolved("align", {**REQUIRED["align"], "method": "grpo", "validation": {"patience": 2}})["validation"]["patience"] == 2
    )


def test_usual_keys_exist_and_include_what_must_be_set(job: str) -> None:
    kind: type[JobConfig] = config_of(find_job(job))
    usual = usual_keys(kind)
    assert len({key.name for key in usual}) == len(kind.usual_keys) <= 21
    required = {key.name for key in keys_of(kind) if key.default is None and not key.condition}
    assert required <= {key.name for key in usual}


def test_hidden_keys_exist_and_are_accepted_but_not_printed(shell: Shell, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    kind: type[JobConfig] = config_of(find_job(job))
    every = dict(walk_keys(kind))
    printed = {key.name for key in keys_of(kind)}
    hidden = set(every) - printed
    assert hidden >= kind.hidden_keys
    assert ("parallel.pipeline" in hidden) == ("parallel.pipeline" in every)
    page, record = "\n".join(lines(shell, monkeypatch, job, 120, "--all")), resolved(job, REQUIRED[job])
    assert all(re.search(rf"^{name} ", page, re.M) is None for name in hidden)
    for name in hidden:
        overrides = [f"{name}={value_of(record, name)}".replace("None", "null")]
        assert load_config(kind, REQUIRED[job], overrides)


def test_every_key_stands_in_its_section(shell: Shell, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    page = lines(shell, monkeypatch, job, 80, "--all")
    assert max(map(len, page)) <= 80
    results = list(entries(page))
    keys = {key.name: key for key in keys_of(config_of(find_job(job)))}
    assert sorted(key for _, key, _ in results) == sorted(keys), "none is left out, none twice"
    for section, key, text in results:
        assert section == (key.partition(".")[0] if "." in key else "Top-level keys")
        assert text == f"{keys[key].meaning} {keys[key].facts}", "no word is broken"


def test_the_usual_keys_come_in_their_order_and_name_the_way_to_the_rest(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    page = lines(shell, monkeypatch, job, 80)
    assert max(map(len, page)) <= 80
    assert len(page) <= 60
    kind = config_of(find_job(job))
    assert [(key, text) for _, key, text in entries(page)] == [
        (key.name, f"{key.meaning} {key.facts}") for key in usual_keys(kind)
    ]
    end = next(line for line in page if END.match(line))
    assert end.startswith(f"{len(keys_of(kind))} keys in all: `ropewalk run {job} --help --all`")


def test_what_must_be_set_comes_first(shell: Shell, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    results = list(entries(lines(shell, monkeypatch, job, 120, "--all")))
    top = ["required" in text for section, _, text in results if section == "Top-level keys"]
    assert top == sorted(top, reverse=True)
    assert any(top)
    sections = list(dict.fromkeys(section for section, _, _ in results))
    assert sections[0] == "Top-level keys"
    assert sections[-3:] == ["resources", "retries", "wandb"]


def test_a_section_says_what_it_is_for_and_whether_it_must_be_set(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    page = lines(shell, monkeypatch, "preprocess", 120, "--all")
    assert next(line for line in page if line.startswith("tokenizer:")).endswith(", required")
    page = lines(shell, monkeypatch, "pretrain", 120, "--all")
    assert next(line for line in page if line.startswith("start_from:")).endswith(", unset by default")


def test_the_values_of_a_key() -> None:
    keys = {key.name: key for key in keys_of(config_of(find_job("pretrain")))}
    assert keys["optim.schedule"].values == ("cosine", "linear", "wsd", "constant")
    assert (keys["optim.betas"].type, keys["optim.betas"].default) == ("list of float", "[0.9, 0.95]")
    assert (keys["resources.nodes"].type, keys["resources.nodes"].default) == ("int or A..B", "1")
    assert keys["model.preset"].default == "tiny", "the job's own, not the section's"
    assert keys["steps"].default is None


@pytest.mark.parametrize("preset", get_args(Preset))
def test_help_has_the_sizes_of_presets(preset: str) -> None:
    millions = re.search(rf"{preset} \(([\d.]+) M", PRESETS)
    assert millions is not None
    with torch.device("meta"):
        config = model_config(ModelConfig(preset=preset), vocabulary=257, end_of_document=256, seq_len=32)  # type: ignore[arg-type]
        model = AutoModelForCausalLM.from_config(config)
    tables = {id(table): table.weight.numel() for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    tied = model.config.tie_word_embeddings
    weights = sum(p.numel() for p in model.parameters()) - sum(tables.values()) // (2 if tied else 1)
    assert float(millions[1]) == pytest.approx(weights / 1e6, rel=0.15 if float(millions[1]) < 1 else 0.02)
    assert PRESETS in next(key.meaning for key in all_keys(config_of(find_job("pretrain"))) if key.name == "model.preset")


def test_help_of_a_key_names_its_jobs_and_their_defaults(shell: Shell) -> None:
    page = " ".join(shell("help", "optim.lr").split())
    assert "peak learning rate (float, default 0.0003) pretrain, distill" in page
    assert "peak learning rate (float, default 2e-5, with lora 0.0002) finetune" in page
    assert "methods" not in page, "a key with this very name"
    assert " ".join(shell("help", "finetune", "optim.lr").split()).endswith("(float, default 2e-5, with lora 0.0002)")
    assert "weight of its samples" in shell("help", "data.weight")
    assert "optim.warmup_steps" in shell("help", "warmup_steps"), "the last part of its name"
    assert {"lora", "lora.rank", "lora.dropout"} <= set(shell("help", "lora").split())
    assert "every job" in shell("help", "resources.nodes")
    assert "did you mean 'batch.global_batch'" in shell.mistake("help", "pretrain", "batch.globl_batch")
    assert "no key, command or job is called 'pss'; did you mean 'ps'" in shell.mistake("help", "pss")


def test_help_of_a_metric_has_unit_and_job(shell: Shell) -> None:
    assert shell("help", "validation/bits_per_byte").startswith("validation/bits_per_byte\n  held-out loss per byte of text")
    assert "(share); reported by align with pairs" in shell("help", "validation/reward_accuracy")


def test_help_of_commands_and_jobs(shell: Shell) -> None:
    assert shell("help", "ps") == shell("ps", "--help")
    assert shell("help", "pretrain") == shell("run", "pretrain", "--help")
    assert shell("help", "pretrain", "--all") == shell("run", "pretrain", "--help", "--all")
    assert "serve" in shell("help", "scale").splitlines()[-1], "a command, and a key"
    assert "quickstart" in shell("help")


@pytest.mark.parametrize(
    "command", [[], ["ps"], ["run"], ["submit"], ["run", "pretrain"], ["lab"], ["help"], ["lab", "slurm", "up"]]
)
def test_short_option_of_help(shell: Shell, command: list[str]) -> None:
    page = shell(*command, "-h")
    assert page == shell(*command, "--help")
    assert page.strip()


def test_job_files_name_their_job(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("run: command\ncommand: [echo, '{word}']\nvalues: {word: first}\n")
    shell("run", "-c", "job.yaml", "values.word=second", "--on", "good")
    run = RunDir(next((tmp_path / "runs").glob("echo-*")))
    assert (run.record["job"], run.record["config"]["values"]) == ("command", {"word": "second"})
    assert "run" not in run.record["config"]
    assert shell("submit", "-c", "job.yaml", "--each", "values.word=a,b", "--on", "good").count("echo-") == 2
    assert "`run: command` makes it a job file of command, not of sweep" in shell.mistake("run", "sweep", "-c", "job.yaml")
    assert shell("run", "command", "-c", "job.yaml", "--dry-run") == shell("run", "-c", "job.yaml", "--dry-run")
    file.write_text("data: d\nsteps: 3\n")
    answer = "job.yaml: names no job; type `ropewalk run pretrain -c job.yaml`, or write `run: pretrain` into the file\n"
    assert shell.mistake("run", "-c", "job.yaml") == f"error: {answer}"
    assert shell.mistake("submit", "-c", "job.yaml", "steps=4") == f"error: {answer}".replace("run pretrain", "submit pretrain")
    file.write_text("steps: 3\ndata: d\nmodel: {path: m}\n")
    assert "(JOB: pretrain or align or finetune)" in shell.mistake("run", "-c", "job.yaml")
    file.write_text("run: sweeep\n")
    assert "unknown job 'sweeep'; did you mean 'sweep'?" in shell.mistake("run", "-c", "job.yaml")


def test_a_sweep_and_a_pipeline_read_files_that_name_their_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("run: pretrain\ndata: data\nsteps: 100\n")
    assert "run" not in resolved("sweep", {**REQUIRED["sweep"], "base": "base.yaml"})["base"]
    step = {"job": "pretrain", "config": "base.yaml"}
    assert resolved("pipeline", {"steps": {"model": step}})["steps"]["model"]["config"] == {"data": "data", "steps": 100}
    with pytest.raises(ConfigError, match="job file of pretrain, not of finetune"):
        resolved("pipeline", {"steps": {"model": {**step, "job": "finetune"}}})

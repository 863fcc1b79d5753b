"""Documents: the site builds without a warning, and its job files, commands and names are those of the program."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.cli.job_keys import keys_of
from ropewalk.jobs.cli.main import app
from ropewalk.jobs.registry import JOBS, config_of
from ropewalk.jobs.results.metric_names import find_metric
from ropewalk.jobs.runs.submit.submit import configure
from ropewalk.jobs.training.align.grpo.objective import METRICS as GRPO_METRICS
from ropewalk.jobs.training.align.preferences.objective import PAIR_METRICS
from ropewalk.jobs.training.distill.losses import Distillation
from tests.documents import PAGES, ROOT, commands, files, mentions

NOT_JOBS = {"notify", "clusters", "prices", "quiz"}
NOT_KEYS = {"train.py", "wandb.init", "wandb.log", "code.diff", "model.json", "array.txt"}
TYPED = {page: {line for on, line in (*commands(), *mentions()) if on == page and line.startswith("ropewalk ")} for page in PAGES}


@pytest.mark.soak(
    "most of a minute of Sphinx, which `make docs` runs too; test_links_lead_somewhere and"
    " test_keys_that_the_documents_name_exist check what pages name"
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "checkpoint.every_steps" in (tmp_path / "reference/generated/job-pretrain.html").read_text()


@pytest.mark.parametrize(("page", "name"), [(page, name) for page in PAGES for name in files(page) if name.endswith(".yaml")])
def test_a_job_file_is_one_as_it_stands(page: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = yaml.safe_load(files(page)[name]).get("run", name.removesuffix(".yaml"))
    if job in NOT_JOBS:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    for other in ("finetune", "align"):
        run = RunDir.create(other, {"job": other, "config": {"steps": 1}}, tmp_path / "runs")
        run.path.rename(tmp_path / "runs" / f"{other.upper()}-RUN")
    (tmp_path / "pretrain.yaml").write_text("data: data\nmodel: {preset: small}\nseq_len: 1024\nsteps: 20\n")
    for other, text in files(page).items():
        (tmp_path / other).write_text(text)
    config = configure(job, tmp_path / name, [])
    assert set(yaml.safe_load(files(page)[name])) - {"run"} <= set(config.model_dump())


def test_every_metric_has_a_meaning() -> None:
    reported = {name for spec in JOBS.values() for name in spec.reports}
    objectives = (*PAIR_METRICS, "kl", *GRPO_METRICS, *Distillation.metric_names)
    names = (*reported, *(f"train/{name}" for name in objectives), *(f"validation/{name}" for name in PAIR_METRICS))
    assert sorted(name for name in names if find_metric(name) is None) == []


def test_keys_that_the_documents_name_exist() -> None:
    names = {key.name for spec in JOBS.values() for key in keys_of(config_of(spec))}
    names |= {name.rpartition(".")[0] for name in names}
    sections = {name.partition(".")[0] for name in names if "." in name}
    texts = [(ROOT / page).read_text() for page in PAGES]
    named = {key for text in texts for key in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:[=:][^`]*)?`", text)}
    assert sorted(key for key in named - names - NOT_KEYS if key.partition(".")[0] in sections) == []


@pytest.mark.parametrize("page", [page for page, lines in TYPED.items() if lines])
def test_the_commands_of_a_page_and_their_options_exist(page: str) -> None:
    for line in sorted(TYPED[page]):
        check_command(page, line)


def check_command(page: str, line: str) -> None:
    group = typer.main.get_command(app)
    arguments = shlex.split(line)[1:]
    while isinstance(group, TyperGroup) and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        assert name in group.commands, f"{page}: no command {name!r}"
        group = group.commands[name]
        if name in ("run", "submit"):
            assert arguments[0] in {*JOBS, "JOB"} or arguments[0].startswith("-"), f"{page}: no job {arguments[0]!r}"
            arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    options = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word for word in arguments if word.startswith("-") and word != "--"}
    assert used <= options | {"--help"}, f"{page}: {line}"

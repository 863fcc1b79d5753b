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
from ropewalk.jobs.runs.submit.submit import configure

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts)]
NOT_JOBS = {"clusters"}
NOT_KEYS = {"train.py", "wandb.init", "wandb.log", "code.diff", "model.json"}


def _blocks(language: str) -> list[tuple[str, str]]:
    """Return (page, text) of each code block in a language."""
    return [
        (str(page.relative_to(ROOT)), block)
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]


def _commands() -> list[tuple[str, str]]:
    """Return (page, command) of each line that starts with `ropewalk`; in the README a description follows after spaces."""
    blocks = [*_blocks("sh"), *((page, text) for page, text in _blocks("") if page == "README.md")]
    lines = [(page, re.split(r"\s{3,}|\s+#", line)[0]) for page, text in blocks for line in text.splitlines()]
    return sorted({(page, line) for page, line in lines if line.startswith("ropewalk ") and "|" not in line})


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "checkpoint.every_steps" in (tmp_path / "reference/generated/job-pretrain.html").read_text()


@pytest.mark.parametrize(("page", "text"), _blocks("yaml"))
def test_a_job_file_is_one_as_it_stands(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = re.match(r"# ([\w-]+)\.yaml\b", text)
    assert match is not None, f"{page}: the first line names the file"
    if match[1] in NOT_JOBS:
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    for job in ("finetune", "align"):
        run = RunDir.create(job, {"job": job, "config": {"steps": 1}}, tmp_path / "runs")
        run.path.rename(tmp_path / "runs" / f"{job.upper()}-RUN")
    for other, block in _blocks("yaml"):
        if other == page and (name := re.match(r"# ([\w-]+)\.yaml\b", block)):
            (tmp_path / f"{name[1]}.yaml").write_text(block)
    if not (tmp_path / "pretrain.yaml").exists():
        (tmp_path / "pretrain.yaml").write_text("data: data\nmodel: {preset: small}\nseq_len: 1024\nsteps: 20\n")
    (tmp_path / "quiz.yaml").write_text("task: quiz\n")
    config = configure(match[1], tmp_path / f"{match[1]}.yaml", [])
    assert set(yaml.safe_load(text)) <= set(config.model_dump())


def test_keys_that_the_documents_name_exist() -> None:
    names = {key.name for spec in JOBS.values() for key in keys_of(config_of(spec))}
    sections = {name.partition(".")[0] for name in names if "." in name}
    texts = [page.read_text() for page in PAGES]
    named = {key for text in texts for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:[=:][^`]*)?`", text)}
    assert sorted(key for key in named - names - NOT_KEYS if key.partition(".")[0] in sections) == []


@pytest.mark.parametrize(("page", "line"), _commands())
def test_a_command_and_its_options_exist(page: str, line: str) -> None:
    group = typer.main.get_command(app)
    arguments = shlex.split(line)[1:]
    while isinstance(group, TyperGroup):
        assert arguments, f"{page}: {line}"
        name = arguments.pop(0)
        assert name in group.commands, f"{page}: no command {name!r}"
        group = group.commands[name]
        if name in ("run", "submit"):
            assert arguments[0] in JOBS or arguments[0].startswith("-"), f"{page}: no job {arguments[0]!r}"
            arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    options = {name for parameter in group.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word for word in arguments if word.startswith("-") and word != "--"}
    assert used <= options | {"--help"}, f"{page}: {line}"

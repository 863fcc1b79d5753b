"""The section "Add an objective" of jobs/training/README.md, followed in a directory with a data set."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.project import PROJECT_VARIABLE
from ropewalk.jobs.runs.submit.dry_run import render
from ropewalk.jobs.runs.submit.submit import configure
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import launch, losses, make_run, pretrain_config
from tests.jobs.shell import Shell
from tests.readme import Section

SECTION = Section("jobs/training/README.md", "Add an objective")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the README's files and a data set."""
    home = tmp_path / "home"
    make_dataset(home / "data")
    SECTION.write_files(home)
    assert sorted(path.name for path in home.iterdir()) == ["data", "mine.py", "pretrain.yaml"]
    return home


@pytest.fixture
def imported_afresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the current one, and this process forgets its module at the end."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))  # undone at the end, like the import
    monkeypatch.delitem(sys.modules, "mine")


def test_an_objective_as_the_readme_adds_it(
    folder: Path, shell: Shell, imported_afresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = SECTION.commands()
    for name, value in {"ROPEWALK_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled"}.items():
        monkeypatch.setenv(name, value)
    fewer = ("steps=3", "batch.global_batch=4", "batch.micro_batch=2", "validation.max_sequences=2")
    results = json.loads(shell(*command, *fewer, "--json").splitlines()[-1])
    (run,) = RunDir.all(folder / "runs")
    assert len(losses(run)) == 3
    assert {"validation/log_z", "validation/loss"} <= results.keys()
    assert "validation/bits_per_byte" not in results, "the loss has no unit"


@pytest.mark.soak("three trainings; make test trains an objective as the README adds it, and pretrain on one to three ranks")
def test_the_objective_trains_alike_on_one_rank_and_on_three(folder: Path) -> None:
    environment = {PROJECT_VARIABLE: str(folder)}
    config = pretrain_config(folder / "data", steps=4, batch={"global_batch": 7, "micro_batch": 1})
    runs = [make_run(folder.parent, {**config, "objective": "mine:ZLoss"}) for _ in range(2)]
    left, three = (launch(run, ranks, **environment) for run, ranks in zip(runs, (1, 3), strict=True))
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-6)
    for name in ("train/log_z", "validation/log_z"):
        first, other = ([line[name] for line in run.read_metrics() if name in line] for run in runs)
        assert first
        assert first == pytest.approx(other, rel=1e-5)
    assert left["validation/log_z"] == pytest.approx(three["validation/log_z"], rel=1e-5)
    plain = make_run(folder.parent, config)
    launch(plain, 1)
    assert losses(runs[0])[1] > losses(plain)[1]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("class ZLoss", "class Zloss"), "objective: mine:ZLoss: {file} defines no 'ZLoss'; did you mean 'Zloss'?"),
        (("metric_names = ", "names = "), "mine:ZLoss in {file} is a class; it must be a class with `metric_names`, such as"),
        (('("log_z",)', '"log_z"'), "mine:ZLoss in {file} is a class; it must be a class with `metric_names`, such as"),
        (("__call__(self", "__init__(self"), "objective: mine:ZLoss: ZLoss.__init__() missing 2 required positional arguments"),
        (("def __call__", "def call"), 'such as ("log_z",), and `__call__(self, model, batch)`'),
        (("import torch\n", "import torhc\n"), "{file}, line 2: ModuleNotFoundError: No module named 'torhc'; install it, or"),
    ],
)
def test_a_mistake_is_reported_before_submission(
    change: tuple[str, str], error: str, folder: Path, imported_afresh: None
) -> None:
    file = folder / "mine.py"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(ConfigError, match=re.escape(error.format(file=file))):
        render("pretrain", [configure("pretrain", Path("pretrain.yaml"), [])], "local")

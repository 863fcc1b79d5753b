"""The steps of "Add a filter" in datapipe/README.md, followed literally."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.preprocess.config import PreprocessConfig
from tests.fakes.documents import configure, make, write_lines

README = Path(__file__).resolve().parents[2] / "datapipe/README.md"


def blocks() -> dict[str, str]:
    """The code of the section, by language."""
    section = README.read_text().partition("## Add a filter")[2].partition("\n## ")[0]
    return dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module and its entry point, as an installed package has them."""
    code = blocks()
    folder = tmp_path / "site"
    package = folder / "shouting-1.0.dist-info"
    package.mkdir(parents=True)
    (folder / "shouting.py").write_text(code["python"])
    points = tomllib.loads(code["toml"])["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items()) for group, named in points.items()]
    (package / "entry_points.txt").write_text("\n".join(lines))
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "shouting", raising=False)


@pytest.mark.usefixtures("installed")
def test_a_filter_as_the_readme_adds_it(tmp_path: Path) -> None:
    message = " ".join(f"word{number}" for number in range(60))
    texts = {"calm": message, "loud": message.upper(), "short": "a few words"}
    source = write_lines(tmp_path / "in/a.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
    keys = yaml.safe_load(blocks()["yaml"])
    manifest = make(source, tmp_path / "out", validation_fraction=0, **keys)
    assert manifest.rejected.reasons == {"min_words.too_few": 1, "shouting.capitals": 1}
    assert manifest.config["filters"] == [{"min_words": {"words": 50}}, {"shouting": {"share": 0.6}}]
    lines = [json.loads(line) for line in (tmp_path / "out/rejected/part-00000.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in lines} == {"short": "min_words.too_few", "loud": "shouting.capitals"}


@pytest.mark.usefixtures("installed")
def test_its_options_are_checked_at_submission(tmp_path: Path) -> None:
    values = {"input": str(tmp_path), "output": str(tmp_path / "out"), "tokenizer": {"train": 300}}
    with pytest.raises(ConfigError, match=r"filters: shouting: unknown key 'shar'; did you mean 'share'\?"):
        load_config(PreprocessConfig, values, ["filters.shouting.shar=1"])
    with pytest.raises(ConfigError, match=r"unknown filter 'shoutin'; did you mean 'shouting'\?"):
        load_config(PreprocessConfig, values, ["filters=[shoutin]"])
    load_config(PreprocessConfig, values, ["filters.shouting.share=1"])


def test_it_is_not_there_without_its_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown filter 'shouting'; available: c4, decontaminate"):
        configure(tmp_path, tmp_path / "out", filters=["shouting"])

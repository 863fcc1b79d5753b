"""Code that lies beside a model's weights is never run."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import ropewalk
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.scoring.open_model import open_model
from ropewalk.jobs.training.loop.architecture.model_config import model_config
from ropewalk.jobs.training.loop.model_keys import ModelConfig


def modules() -> Iterator[Path]:
    for part in Path(ropewalk.__file__).parent.iterdir():
        yield from (path for path in part.resolve().glob("**/*.py") if "examples" not in path.parts)


def test_every_call_that_opens_a_model_refuses_remote_code() -> None:
    calls = [
        (path.name, node.lineno, [keyword.value for keyword in node.keywords if keyword.arg == "trust_remote_code"])
        for path in modules()
        if "_pretrained" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("Auto")
        and ast.unparse(node.func).endswith("_pretrained")
    ]
    assert len(calls) > 10
    assert [call for call in calls if [ast.unparse(value) for value in call[2]] != ["False"]] == []


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A model directory whose architecture only its own code defines."""
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {"model_type": "foreign", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_model_that_needs_its_own_code_is_refused(foreign: Path) -> None:
    with pytest.raises(ConfigError, match=r"model: .* cannot be opened: .*contains custom code"):
        open_model(str(foreign))
    with pytest.raises(ConfigError, match=r"model\.path: .* cannot be opened: .*contains custom code"):
        model_config(ModelConfig(path=str(foreign)), vocabulary=300, seq_len=8, end_of_document=0)
    assert not (foreign / "ran").exists()

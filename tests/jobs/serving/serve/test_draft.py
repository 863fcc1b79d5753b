"""The draft of a serving run: where it comes from, and what is refused before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.models.registry.promote import promote
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.drafts import check_draft, draft_directory
from tests.fakes.engine import fake_model


def test_a_draft_is_a_directory_or_a_version_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROPEWALK_RUNS", str(tmp_path / "runs"))
    folder = fake_model(tmp_path / "draft")
    assert draft_directory(str(folder), tmp_path / "made") == folder
    promote(str(folder), "candidate", name="drafts", force="a test")
    config = load_config(ServeConfig, {"model": str(folder), "draft": "drafts@candidate"}).resolved()
    assert config.draft == "drafts@candidate"
    assert config.draft is not None
    assert draft_directory(config.draft, tmp_path / "made") == folder
    config.preflight()


def test_a_draft_that_is_not_there_is_named_before_anything_starts(tmp_path: Path) -> None:
    folder = fake_model(tmp_path / "model")
    config = load_config(ServeConfig, {"model": str(folder), "draft": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=r"draft: .*nowhere"):
        config.preflight()
    with pytest.raises(ConfigError, match="draft: set it in engine_command"):
        load_config(ServeConfig, {"model": "m", "draft": "d", "engine_command": ["serve", "{model}"]})


def test_a_draft_of_other_tokens_is_refused_before_anything_starts(tmp_path: Path) -> None:
    places = {name: fake_model(tmp_path / name) for name in ("model", "same", "other")}
    for name, folder in places.items():
        vocab = {"a": 0, "b": 1 if name != "other" else 2}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
    check_draft(str(places["model"]), str(places["same"]))
    with pytest.raises(ConfigError, match=r"draft: .*other has other tokens than .*model"):
        check_draft(str(places["model"]), str(places["other"]))


@pytest.mark.parametrize(
    ("keys", "refused"),
    [
        ({"engine": "transformers"}, True),
        ({"engine": "auto", "gpus": 1, "resources": {"gpus": 1}}, True),
        ({"engine": "auto"}, False),
        ({"engine": "vllm"}, False),
        ({"engine": "plugin-of-the-cluster"}, False),
    ],
    ids=str,
)
def test_a_draft_for_an_engine_without_drafts_is_refused_before_anything_starts(
    tmp_path: Path, keys: dict[str, Any], refused: bool
) -> None:
    folder = str(fake_model(tmp_path / "model"))
    config = load_config(ServeConfig, {"model": folder, "draft": folder, **keys})
    if not refused:
        config.preflight()
        return
    with pytest.raises(ConfigError, match=r"draft: engine transformers takes no draft; .* set engine to one of llamacpp, vllm"):
        config.preflight()

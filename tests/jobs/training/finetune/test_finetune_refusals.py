"""Inputs that finetuning refuses or leaves out, with their messages."""

from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.align.config import AlignConfig
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from tests.jobs.launch import events, launch, log_of, start
from tests.jobs.training.finetune.chats import LORA, chats, finetune_config, make_base, make_run, write_lines


def test_conversations_that_are_too_long(base: Path, root: Path, tmp_path: Path) -> None:
    long = {"id": "long", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "rope " * 200}]}
    unanswered = {"id": "late", "messages": [{"role": "user", "content": "rope " * 200}, {"role": "assistant", "content": "a"}]}
    path = write_lines(tmp_path / "a.jsonl", [*chats(30), long, unanswered])
    results = {}
    for how in ("drop", "cut", "error"):
        run = make_run(root, finetune_config(base, path, on_long=how, steps=1, validation_fraction=0))
        if how == "error":
            assert start(run, 2).wait() == [42, 42]
            assert "'long' has 2" in log_of(run)
            assert "2 are longer than seq_len=96; raise seq_len, or set on_long to drop or cut" in log_of(run)
        else:
            results[how] = launch(run, 1)
            assert events(run, "no_validation"), "it is said that nothing tells when it overfits"
    assert (results["drop"]["too_long"], results["drop"]["cut"]) == (2, 0)
    assert (results["cut"]["too_long"], results["cut"]["cut"]) == (2, 1), "nothing is learnt of what is cut before its answer"


def test_what_does_not_fit_together_is_refused(base: Path, data: Path, root: Path, tmp_path: Path) -> None:
    first = make_run(root, finetune_config(base, data, steps=1))
    prepared = launch(first, 1)["data"]
    strange = make_base(tmp_path / "strange", text="other words make another tokenizer")
    text = tmp_path / "text"
    from tests.jobs.corpus import make_dataset

    make_dataset(text)
    empty = write_lines(tmp_path / "empty.jsonl", [{"messages": [{"role": "user", "content": "Q"}]}])
    failing = tmp_path / "failing.jinja"
    failing.write_text("{{ raise_exception('never') }}")
    for number, (config, message) in enumerate(
        refused_configs(base, strange, text, empty, failing, data, Path(prepared), tmp_path)
    ):
        run = make_run(root, {**config, "steps": 1})
        ranks = 1 if number else 2
        assert start(run, ranks).wait() == [42] * ranks, log_of(run)
        assert message in log_of(run)


def refused_configs(*paths: Path) -> list[tuple[dict[str, Any], str]]:
    """Configurations, and what is said of each."""
    base, strange, text, empty, failing, data, prepared, tmp_path = paths
    return [
        (finetune_config(strange, prepared), "was prepared with another tokenizer than the model's"),
        (finetune_config(base, text), "holds text, not conversations"),
        (finetune_config(base, empty), "no conversation is left to train on; rejected: no_assistant_turn 1"),
        (finetune_config(base, data, chat={"template": str(failing)}), "rejected: template_failed 150 (such as chat-0: never)"),
        (finetune_config(base, data, chat={"template": str(tmp_path / "none")}), "cannot be read"),
        (finetune_config(base, data, lora={"targets": ["nope"]}), "name layers of the model in lora.targets"),
    ]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
        pytest.param("bloom", {"n_layer": 2, "n_head": 2}, marks=pytest.mark.soak("another kind of model; make test runs opt")),
    ],
)
def test_packing_is_refused_where_the_model_does_not_keep_documents_apart(
    data: Path, root: Path, tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    base = make_base(tmp_path / "base", model_type=kind, **changes)
    run = make_run(root, finetune_config(base, data, steps=1))
    assert start(run, 2).wait() == [42, 42]
    assert "does not separate packed documents" in log_of(run)
    launch(make_run(root, finetune_config(base, data, steps=1, packing=False)), 1)


def test_keys_that_exclude_each_other(base: Path, data: Path) -> None:
    config = finetune_config(base, data)
    for changes, arguments in (({"model": {"preset": "tiny"}}, "has no tokenizer; set tokenizer"),):
        with pytest.raises(ConfigError, match=arguments):
            load_config(FinetuneConfig, {**config, **changes})
    result = load_config(FinetuneConfig, {**config, "steps": 300, "lora": LORA, "optim": {}, "validation": {}})
    assert (result.optim.lr, result.validation.every_steps, result.validation.patience) == (2e-4, 15, 3)
    assert result.validation.keep_best
    assert load_config(FinetuneConfig, {**config, "validation": {"patience": None}}).validation.patience is None


@pytest.mark.parametrize("config_type", [FinetuneConfig, AlignConfig])
def test_zeros_are_not_kept_beside_an_adapter(config_type: type[FinetuneConfig] | type[AlignConfig]) -> None:
    """Half of an adapter begins at zero, and would stay there; and what is merged fills the zeros of the pruned weights."""
    keys = {"model": {"path": "/base"}, "data": "/data", "steps": 2}
    for item in ({"lora": {}}, {"keep_zeros": True}, {"lora": {}, "keep_zeros": False}):
        load_config(config_type, {**keys, **item})
    with pytest.raises(ConfigError, match=r"keep_zeros: .* lora .*; remove lora"):
        load_config(config_type, {**keys, "lora": {}, "keep_zeros": True})

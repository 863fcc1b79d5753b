"""Losses in chunks on two ranks of a sharded model, against whole logits of the same model."""

import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.jobs.runs.show.events import format_event
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import launch, losses, make_run, pretrain_config
from tests.jobs.training.loop.head_rank import rank_main
from tests.ranks import run_ranks

LORA = {"rank": 4, "targets": ["q_proj", "lm_head"]}
CASES: dict[str, dict[str, Any]] = {
    "never resharded": {"kind": "untied", "parallel": {"reshard": "never"}},
    "dora": {"kind": "untied", "lora": {**LORA, "dora": True}},
    "recomputed": {"kind": "tied", "parallel": {"activation_checkpointing": "full"}},
}
MORE_CASES: dict[str, dict[str, Any]] = {
    "tied": {"kind": "tied"},
    "untied": {"kind": "untied"},
    "capped": {"kind": "capped"},
    "lora": {"kind": "untied", "lora": LORA},
    "frozen head": {"kind": "tied", "lora": {"rank": 4, "targets": ["q_proj"]}},
}
BF16: dict[str, dict[str, Any]] = {"bf16": {"kind": "untied", "precision": {"compute": "bf16"}}}
COMPILED: dict[str, dict[str, Any]] = {
    "compiled": {"kind": "tied", "parallel": {"compile": True}},
    "compiled with an adapter": {"kind": "untied", "lora": LORA, "parallel": {"compile": True}},
}


def results_of(cases: dict[str, dict[str, Any]], folder: Path) -> list[dict[str, dict[str, list[float]]]]:
    """The differences of each rank."""
    run_ranks(rank_main, 2, cases, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("cases", "largest"),
    [
        pytest.param(CASES, 1e-6, id="fp32"),
        pytest.param(MORE_CASES, 1e-6, id="more", marks=pytest.mark.soak("other heads and adapters; make test runs three cases")),
        pytest.param(BF16, 2e-2, id="bf16", marks=pytest.mark.soak("another format; make test runs it on one rank")),
        pytest.param(COMPILED, 1e-5, id="compiled", marks=pytest.mark.soak("compiles kernels for minutes")),
    ],
)
def test_sharded_models_learn_as_from_whole_logits(cases: dict[str, dict[str, Any]], largest: float, tmp_path: Path) -> None:
    for differences in results_of(cases, tmp_path):
        assert differences.keys() == cases.keys()
        for name, each in differences.items():
            assert len(each) == 6
            assert max(max(pair) for pair in each.values()) <= largest, (name, each)


def test_a_run_says_that_it_computes_whole_logits(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    plain, whole = (make_run(tmp_path, pretrain_config(data, steps=3)) for _ in range(2))
    launch(plain, 2)
    launch(whole, 2, TEST_HOOK="needs_all_tokens")
    assert losses(whole) == pytest.approx(losses(plain), rel=1e-6)
    assert not [event for event in plain.read_events() if event["event"] == "whole_logits"]
    (event,) = [event for event in whole.read_events() if event["event"] == "whole_logits"]
    text = "computes whole logits, which takes more memory: they differ on another rank"
    assert (format_event(event) or "").endswith(text)
    for rank, reason in enumerate(("they differ on another rank", "planted")):
        assert f"memory: {reason}" in (whole.log_dir(1) / f"rank-{rank}.log").read_text()

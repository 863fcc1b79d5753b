"""Samples that the student writes itself: the formula's loss on them, each learnt once, through a kill in the ledger."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.on_policy import MixedSource, is_generated
from ropewalk.jobs.training.loop.batch import IGNORE
from ropewalk.jobs.training.loop.source import TokenSource
from ropewalk.jobs.training.rollouts.ledger import read_rollouts
from tests.jobs.corpus import make_dataset
from tests.jobs.launch import equal, events, launch, losses, start, weights
from tests.jobs.tiny import tiny_model
from tests.jobs.training.distill.test_distill import distill_config, distill_run

OWN = {"share": 0.6, "prompt_tokens": 6, "max_new_tokens": 9, "chunk": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))


def plain_loss(run: RunDir, teacher: Path, data: Path) -> float:
    """The first step's generalized Jensen-Shannon divergence in float64, by its definition, token by token."""
    models = [AutoModelForCausalLM.from_pretrained(path).double() for path in (run.path / "student", teacher)]
    texts = torch.from_numpy(TokenLoader([Source(str(data))], seq_len=24, seed=0).read(range(6))).long()
    written = {row["slot"]: row["tokens"] for row in read_rollouts(run).to_pylist() if row["position"] == 0}
    assert written.keys() == {k for k in range(6) if is_generated(0, k, OWN["share"])}
    assert 0 < len(written) < 6, "some of both"
    total, count = 0.0, 0
    for position, text in enumerate(texts):
        answer = written.get(position)
        tokens = torch.tensor([*text[:6].tolist(), *answer]) if answer else text
        start = 5 if answer else 0
        with torch.no_grad():
            q, p = (model(input_ids=tokens[None, :-1]).logits[0, start:].softmax(-1) for model in models)
        m = 0.3 * p + 0.7 * q
        total += float((0.3 * p * (p / m).log() + 0.7 * q * (q / m).log()).sum())
        count += len(p)
    return total / count


def test_own_samples_are_learnt_once_by_the_formula_and_a_kill_changes_no_bit(data: Path, tmp_path: Path) -> None:
    teacher = tiny_model(tmp_path / "teacher", num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    config = distill_config(teacher, data, loss="jensen_shannon", beta=0.3, on_policy=OWN, steps=5)
    whole, killed = (distill_run(tmp_path / "runs", config) for _ in range(2))
    results = launch(whole, 1)
    assert losses(whole)[1] == pytest.approx(plain_loss(whole, teacher, data), rel=1e-5)

    group = start(killed, 1, TEST_HOOK="stall_rollouts", TEST_STALL="put:after:6:0")  # in the fourth step or so
    group.until(lambda: (killed.path / "stalled").exists() and bool(events(killed, "checkpoint")))
    group.kill()
    launch(killed, 1)
    assert events(killed, "resumed")
    assert equal(weights(whole), weights(killed))
    assert losses(whole) == losses(killed)
    ledgers = [read_rollouts(run).sort_by("slot") for run in (whole, killed)]
    assert set(ledgers[1]["state"].to_pylist()) == {"used"}
    assert ledgers[0]["tokens"] == ledgers[1]["tokens"]
    assert ledgers[1]["slot"].to_pylist() == [k for k in range(30) if is_generated(0, k, OWN["share"])], "each once"
    assert "60% of the samples were written by the student" in (whole.path / "distill/report.html").read_text()
    assert results["table"][2]["kl"] > 0


def test_the_rows_of_a_batch(data: Path) -> None:
    texts = TokenSource(TokenLoader([Source(str(data))], seq_len=24, seed=0))
    source = MixedSource(texts)
    source.put({1: ([7, 8], [9, 10, 0]), 2: ([7, 8], [11])})
    both = source.read([0, 1])
    assert both["input_ids"].shape == (2, 24)
    assert torch.equal(both["input_ids"][0], texts.read([0])["input_ids"][0])
    assert both["input_ids"][1, :5].tolist() == [7, 8, 9, 10, 0]
    assert both["labels"][1].tolist() == [IGNORE, 9, 10, 0, *[IGNORE] * 20]
    assert source.read([1, 2])["labels"].tolist() == [[IGNORE, 9, 10, 0], [IGNORE, 11, IGNORE, IGNORE]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alpha": 0.5}, "would teach the student what it writes itself"),
        ({"teacher_logits": "cached"}, "is not known before"),
        ({"on_policy": {"prompt_tokens": 16}}, "16 \\+ 64 tokens do not fit in seq_len, 24"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        DistillConfig.model_validate(distill_config("/teacher", Path("/data"), **{"on_policy": OWN, **changes}))

"""Aligning as a whole: any number of ranks, stopped, killed and resumed; what is measured, and what is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.loader.order import permute
from ropewalk.jobs.training.align.preferences.source import Rows
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from ropewalk.sharding.config import PrecisionConfig
from ropewalk.sharding.parallelize import compute_format
from tests.jobs.corpus import END
from tests.jobs.launch import equal, events, launch, log_of, losses, start, weights
from tests.jobs.training.align.formulas import kto_losses, pair_losses
from tests.jobs.training.align.pairs import align_config, align_run, make_model, pairs, write_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl.zst", pairs(50))


def metrics(run: RunDir, name: str) -> list[float]:
    return [line[name] for line in run.read_metrics() if name in line]


LORA = {"lora": {"rank": 4}, "optim": {"lr": 1e-2, "warmup_steps": 2}}


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, id="dpo", marks=pytest.mark.soak("make test runs the formula of dpo on two ranks")),
        pytest.param({"method": "kto"}, id="kto", marks=pytest.mark.soak("make test runs the formula of kto on three ranks")),
        pytest.param({"method": "orpo"}, id="orpo", marks=pytest.mark.soak("make test runs the formula of kto on three ranks")),
        pytest.param(LORA, id="lora", marks=pytest.mark.soak("make test runs the formula with an adapter on two ranks")),
    ],
)
def test_no_number_of_ranks_and_no_micro_batch_changes_what_is_learnt(
    keys: dict[str, Any], model: Path, data: Path, tmp_path: Path
) -> None:
    config = align_config(model, data, **keys)
    runs = [align_run(tmp_path, {**config, "batch": {"global_batch": 7, "micro_batch": size}}) for size in (7, 2)]
    results = [launch(run, ranks) for run, ranks in zip(runs, (1, 3), strict=True)]
    for run, result in zip(runs[1:], results[1:], strict=True):
        assert losses(run) == pytest.approx(losses(runs[0]), rel=1e-6)
        for name in ("reward_margin", "logp_chosen", "rewards_rejected"):
            assert metrics(run, f"train/{name}") == pytest.approx(metrics(runs[0], f"train/{name}"), rel=1e-4, abs=1e-6)
        assert result["validation/reward_accuracy"] == results[0]["validation/reward_accuracy"]
    assert losses(runs[0])[6] < losses(runs[0])[1]
    assert results[0]["validation/reward_accuracy"] > 0.6


@pytest.mark.soak(
    "six ranks of the one training loop; test_stopped_and_resumed_is_bit_identical,"
    " test_killed_and_resumed_is_bit_identical_and_saves_the_adapter_alone and"
    " test_killed_at_any_moment_it_ends_bit_identical_and_no_rollout_is_used_twice resume it"
)
@pytest.mark.parametrize("keys", [pytest.param({}, id="dpo"), pytest.param({"method": "kto", **LORA}, id="kto with lora")])
def test_killed_and_resumed_is_bit_identical(keys: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    config = align_config(model, data, steps=5, checkpoint={"every_steps": 3}, **keys)
    whole, killed = (align_run(tmp_path, config) for _ in range(2))
    launch(whole, 2)
    group = start(killed, 2, TEST_HOOK="stall_in_step")
    group.until(lambda: (killed.path / "stalled").exists() and bool(events(killed, "checkpoint")))
    group.kill()
    data.rename(data.with_name("gone"))  # what was prepared is the run's own
    try:
        launch(killed, 2)
    finally:
        data.with_name("gone").rename(data)
    assert [event["step"] for event in events(killed, "resumed")] == [3]
    assert equal(weights(whole), weights(killed))
    assert losses(whole) == losses(killed)


def row_numbers(steps: range, rows: int) -> list[int]:
    """The rows that a run of `align_config` learns from in these steps, counted from 0."""
    positions = np.arange(steps.start * 7, steps.stop * 7)
    epochs, indices = np.divmod(positions, rows)
    return permute(indices, rows, 0, epochs).tolist()


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(
            {"method": "ipo", "length_normalized": True},
            id="ipo",
            marks=pytest.mark.soak("another run of two ranks; make test has the formula of ipo without one"),
        ),
        pytest.param(LORA, id="dpo with lora"),
    ],
)
def test_the_loss_of_a_run_is_the_papers(keys: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    """Recompute the loss from the checkpoint before it, one sequence at a time."""
    run = align_run(tmp_path, align_config(model, data, steps=2, checkpoint={"every_steps": 1}, **keys))
    launch(run, 2)
    rows = Rows(run.path / "pairs/train.arrow")
    names = ("prompt", "chosen", "rejected")
    learnt = [tuple(rows.ids(row, name).tolist() for name in names) for row in row_numbers(range(1, 2), len(rows))]
    before, reference = load_model(run, 1)[0].double(), AutoModelForCausalLM.from_pretrained(model).double()
    with torch.no_grad():
        wanted = pair_losses(keys, before, reference, learnt).mean().item()  # type: ignore[arg-type]
    assert losses(run)[2] == pytest.approx(wanted, rel=1e-6)


def test_the_loss_and_the_kl_of_kto_are_the_papers(model: Path, data: Path, tmp_path: Path) -> None:
    run = align_run(tmp_path, align_config(model, data, method="kto", steps=2, checkpoint={"every_steps": 1}))
    launch(run, 3)
    rows = Rows(run.path / "pairs/train.arrow")
    numbers = row_numbers(range(1, 2), len(rows))
    learnt, others = [], []
    for row in numbers:
        prompt = rows.ids(row, "prompt").tolist()
        learnt.append((prompt, rows.ids(row, "completion").tolist(), rows.value(row, "label")))
        another = next(n for k in range(1, len(rows)) if rows.ids(n := (row + k) % len(rows), "prompt").tolist() != prompt)
        others.append(rows.ids(another, "completion").tolist())
    before, reference = load_model(run, 1)[0].double(), AutoModelForCausalLM.from_pretrained(model).double()
    with torch.no_grad():
        wanted, kl = kto_losses(before, reference, learnt, others)
    assert losses(run)[2] == pytest.approx(wanted.mean().item(), rel=1e-6)
    assert metrics(run, "train/kl")[1] == pytest.approx(kl.item(), rel=1e-4, abs=1e-6)
    assert kl > 0


@pytest.mark.soak(
    "four ranks; test_cached_logits_are_computed_once_and_a_kill_changes_nothing verifies chunks,"
    " test_a_reference_is_that_of_one_format computes a reference"
)
def test_a_reference_is_computed_once_and_verified(model: Path, tmp_path: Path) -> None:
    ours = write_pairs(tmp_path / "pairs.jsonl", pairs(20))
    config = align_config(model, ours, steps=2)
    copy, once, again = (align_run(tmp_path, {**config, "reference": kind}) for kind in ("copy", "precomputed", "precomputed"))
    launch(copy, 1)
    launch(once, 2)
    assert losses(once) == pytest.approx(losses(copy), rel=1e-6)
    chunks = sorted(tmp_path.glob("*.reference/*/*.arrow"))
    assert {path.name for path in chunks} == {"train-00000.arrow", "validation-00000.arrow"}
    written, content = [path.stat().st_mtime_ns for path in chunks], chunks[0].read_bytes()
    middle = len(content) // 2
    chunks[0].write_bytes(content[:middle] + b"x" + content[middle + 1 :])
    launch(again, 1)
    assert chunks[0].read_bytes() == content, "a damaged one is made anew"
    assert chunks[1].stat().st_mtime_ns == written[1], "another is not"
    assert losses(again) == pytest.approx(losses(copy), rel=1e-6)


def test_a_reference_is_that_of_one_format(model: Path, tmp_path: Path) -> None:
    """On a CPU auto is fp32, and on a GPU bf16: what was computed in one is not taken for the other."""
    auto, single = (compute_format(PrecisionConfig(compute=name), torch.device("cpu")) for name in ("auto", "fp32"))
    assert auto == single
    few = write_pairs(tmp_path / "pairs.jsonl", pairs(10))
    for compute, folders in (("auto", 1), ("bf16", 2)):
        config = align_config(model, few, steps=1, reference="precomputed", precision={"compute": compute})
        launch(align_run(tmp_path, config), 1)
        assert len({path.parent for path in tmp_path.glob("*.reference/*/*.arrow")}) == folders, compute


@pytest.mark.soak("several kills; make test runs test_cached_logits_are_computed_once_and_a_kill_changes_nothing")
def test_a_killed_computation_of_the_reference_goes_on(model: Path, tmp_path: Path) -> None:
    many = write_pairs(tmp_path / "pairs.jsonl", pairs(600))
    run = align_run(
        tmp_path, align_config(model, many, steps=1, reference="precomputed", batch={"global_batch": 4, "micro_batch": 32})
    )
    group = start(run, 1, TEST_HOOK="stall_in_reference")
    group.until((run.path / "stalled").exists)
    group.kill()
    (first,) = tmp_path.glob("*.reference/*/*.arrow")
    written = first.stat().st_mtime_ns
    launch(run, 2)
    assert first.stat().st_mtime_ns == written, "what is kept is not computed again"
    assert len(list(tmp_path.glob("*.reference/*/*.arrow"))) == 3
    assert losses(run)[1] == pytest.approx(np.log(2), rel=1e-6), "the model is its reference still"


def test_what_no_pair_can_be_made_of_is_counted_and_named(model: Path, tmp_path: Path) -> None:
    bad: list[Any] = [
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "b"},
        {"prompt": "", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": " ", "rejected": "c"},
        {"prompt": "a", "chosen": 3, "rejected": "c"},
        {"prompt": "a", "chosen": "long " * 40, "rejected": "c"},
        {"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "user", "content": "b"}], "rejected": "c"},
        ["no object"],
    ]
    data = write_pairs(tmp_path / "pairs.jsonl.zst", [*bad, *pairs(9)])
    run = align_run(tmp_path, align_config(model, data, steps=1, validation_fraction=0))
    results = launch(run, 1)
    assert results["pairs"] == {
        "rows": {"train": 9},
        "cut": 0,
        "rejected": {
            "empty_answer": 1,
            "empty_prompt": 1,
            "equal_answers": 1,
            "missing_rejected": 1,
            "no_assistant_turn": 1,
            "not_an_object": 1,
            "no_messages": 1,
            "too_long": 1,
        },
    }
    assert events(run, "pairs_rejected")[0]["total"] == 8
    assert len((run.path / "pairs/rejected.jsonl").read_text().splitlines()) == 8
    cut = align_run(tmp_path, align_config(model, data, steps=1, validation_fraction=0, on_long="cut"))
    assert launch(cut, 1)["pairs"]["cut"] == 1


@pytest.mark.parametrize(
    ("keys", "records", "message"),
    [
        (
            {"on_long": "error"},
            [*pairs(3), {"prompt": "a", "chosen": "b" * 99, "rejected": "c"}],
            "pairs.jsonl.zst:4: a prompt with",
        ),
        ({}, [{"prompt": "a", "completion": "b", "label": True}], "1 missing_chosen"),
        ({}, [{"prompt": "a", "chosen": "b", "rejected": "b"}], "no record to train on (1 equal_answers)"),
    ],
    ids=["too long", "no pairs", "equal answers"],
)
def test_data_that_cannot_be_learnt_from_end_the_run(
    keys: dict[str, Any], records: list[dict[str, Any]], message: str, model: Path, tmp_path: Path
) -> None:
    run = align_run(tmp_path, align_config(model, write_pairs(tmp_path / "pairs.jsonl.zst", records), **keys))
    assert start(run, 1).wait() == [42]
    assert message in log_of(run)


def test_a_tokenizer_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    small = make_model(tmp_path / "small", vocab_size=200, eos_token_id=0)
    run = align_run(tmp_path, align_config(small, data))
    assert start(run, 1).wait() == [42]
    assert "they do not match" in log_of(run)


def test_preferred_answers_that_are_longer_are_warned_of(model: Path, tmp_path: Path) -> None:
    records = [{**pair, "chosen": pair["chosen"] + " and on and on"} for pair in pairs(40)]
    run = align_run(tmp_path, align_config(model, write_pairs(tmp_path / "pairs.jsonl", records), steps=1))
    launch(run, 1)
    event = events(run, "length_bias")[0]
    assert event["share_longer"] > 0.6
    assert event["chosen"] > event["rejected"]


def test_messages_are_written_by_the_models_template(model: Path, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    good, bad = ([{"role": "assistant", "content": word}] for word in ("good", "bad"))
    records = [{"prompt": turns, "chosen": good, "rejected": "bad"}, {"chosen": turns + good, "rejected": turns + bad}]
    data = write_pairs(tmp_path / "pairs.jsonl.zst", records)
    keys = {"steps": 1, "validation_fraction": 0, "batch": {"global_batch": 2, "micro_batch": 2}}
    run = align_run(tmp_path, align_config(model, data, **keys))
    launch(run, 1)
    rows = Rows(run.path / "pairs/train.arrow")
    for row in range(2):
        prompt, chosen, rejected = (rows.ids(row, name).tolist() for name in ("prompt", "chosen", "rejected"))
        assert bytes(token for token in prompt if token != END) == b"<system>S\n<user>U\n<assistant>"
        assert (bytes(chosen[:-1]), bytes(rejected[:-1])) == (b"good", b"bad")
        assert chosen[-1] == rejected[-1] == END, "the end of the turn is learnt, and nothing behind it"

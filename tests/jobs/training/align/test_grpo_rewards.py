"""GRPO's rewards: those that fail, those of other packages and models, and the prompts that they judge."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.align.reward.open import open_reward_model
from ropewalk.jobs.training.align.reward_functions import make_reward
from ropewalk.jobs.training.rollouts.ledger import read_rollouts
from tests.jobs.launch import events, launch, log_of, start
from tests.jobs.training.align.pairs import make_model
from tests.jobs.training.align.rolling import grpo_config, grpo_run, last_lines, prompts, write_prompts

HERE = "tests.jobs.training.align.rolling"


def test_rewards_that_fail_have_an_outcome_that_is_recorded_and_cost_nothing_else(
    model: Path, data: Path, tmp_path: Path
) -> None:
    rewards = [{f"{HERE}:faulty": {}, "seconds": 0.3}, {f"{HERE}:share_of_letters": {}, "weight": 0.5}]
    run = grpo_run(
        tmp_path,
        grpo_config(
            model, data, steps=1, batch={"global_batch": 20, "micro_batch": 20}, grpo={"group_size": 2, "rewards": rewards}
        ),
    )
    launch(run, 1)
    rows = {row["prompt"]: row for row in read_rollouts(run).to_pylist()}
    messages = [rows[number]["outcomes"][0] for number in range(7)]
    assert messages == [
        "ValueError: cannot say",
        "not a number: nan",
        "timeout after 0.3 s",
        "its process died: exit code 3",
        "nothing",
        "ValueError: could not convert string to float: 'much'",
        "ok",
    ]
    assert all(row["outcomes"][1] == "ok" for row in rows.values())
    result = events(run, "reward_failed")
    assert {(event["reward"], event["answers"], event["of"]) for event in result} == {("faulty", 2, 20)}
    assert len(result) == 5
    line = last_lines(run)[0]
    assert line["train/reward/faulty"] == 1.0
    letters = [row["rewards"][1] for row in read_rollouts(run).to_pylist() if row["prompt"] in {4, 6, 7, 8, 9}]
    assert line["train/reward"] == pytest.approx(0.8 + 0.5 * sum(letters) / 10)


def test_a_task_of_reasoning_gym_rewards_by_its_own_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself has many others behind it; here is what is asked of it."""
    gym = ModuleType("reasoning_gym")
    items: list[tuple[str, dict[str, Any]]] = []
    scorers = {"chain_sum": lambda answer, entry: items.append((answer, entry)) or float(answer == entry["answer"])}
    gym.get_score_answer_fn = scorers.__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)
    reward = make_reward("reasoning_gym", {"task": "chain_sum"})
    item = {"prompt": "1 + 2", "answer": "3", "metadata": {"difficulty": {}}}
    assert [reward("3", item), reward("4", item)] == [1.0, 0.0]
    assert items[0] == ("3", item)
    with pytest.raises(ConfigError, match=r"rewards: reasoning_gym: KeyError: 'no'; correct its name, options or module"):
        make_reward("reasoning_gym", {"task": "no"})
    with pytest.raises(KeyError, match="has no field 'answer'"):
        reward("3", {"prompt": "1 + 2"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rewards": [f"{HERE}:always_fails"]},
            "always_fails failed for 16 of 16 answers of step 1: RuntimeError: no judge is there",
        ),
        ({"rewards": [f"{HERE}:nobody"]}, "rewards: tests.jobs.training.align.rolling:nobody: AttributeError"),
        ({"rewards": ["no.such.module:f"]}, "rewards: no.such.module:f: ModuleNotFoundError"),
        (
            {"rewards": [f"{HERE}:faulty"], "on_failed_reward": "error"},
            "fix it, or set grpo.on_failed_reward to drop or zero",
        ),
        ({"rewards": [{"exact_match": {"field": "solution"}}]}, "has no field 'solution'; it has id, prompt, answer"),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_rewards_that_cannot_be_computed_end_the_run(
    changes: dict[str, Any], message: str, model: Path, data: Path, tmp_path: Path
) -> None:
    if "on_failed_reward" in changes:
        changes["rewards"] = [{changes["rewards"][0]: {}, "seconds": 0.3}]
    run = grpo_run(tmp_path, grpo_config(model, data, grpo=changes))
    assert start(run, 1).wait() == [42]
    assert message in log_of(run)


def test_prompts_that_are_of_no_use_are_counted_and_named(model: Path, tmp_path: Path) -> None:
    records: list[Any] = [
        *prompts(3),
        {"answer": "x"},
        {"prompt": ""},
        {"prompt": 7},
        {"prompt": [{"role": "assistant", "content": "x"}]},
    ]
    records += [{"prompt": "long " * 40}, {"prompt": [{"role": "user", "content": "one"}]}]
    data = write_prompts(tmp_path / "prompts.jsonl", records)
    with data.open("a") as stream:
        stream.write("{half\n")
    run = grpo_run(tmp_path, grpo_config(model, data, steps=1, seq_len=40))
    results = launch(run, 1)
    assert results["prompts"] == 4
    wanted = {
        "missing_prompt",
        "empty_prompt",
        "no_messages",
        "prompt_ends_with_an_answer",
        "prompt_too_long",
        "invalid_json",
    }
    assert results["rejected"]["reasons"] == dict.fromkeys(wanted, 1)
    assert events(run, "prompts_rejected")[0]["total"] == 6
    for keys, arguments in (
        ({"on_long": "error"}, "at most 32 fit"),
        ({"data": str(write_prompts(tmp_path / "none.jsonl", [{}]))}, "no usable prompt"),
    ):
        other = grpo_run(tmp_path, {**grpo_config(model, data, seq_len=40), **keys})
        assert start(other, 1).wait() == [42]
        assert arguments in log_of(other)


@pytest.mark.soak("trains a reward model first; make test runs functions as rewards")
def test_a_reward_model_rewards(model: Path, data: Path, tmp_path: Path) -> None:
    judge = make_judge(tmp_path / "judge")
    run = grpo_run(tmp_path, grpo_config(model, data, steps=1, grpo={"rewards": [{"model": {"of": str(judge)}, "seconds": 60}]}))
    launch(run, 1)
    opened = open_reward_model(str(judge))
    for row in read_rollouts(run).slice(0, 4).to_pylist():
        prompt = prompts(10)[row["prompt"]]["prompt"]
        assert row["rewards"][0] == pytest.approx(opened.score(prompt, [row["answer"]])[0], rel=1e-4, abs=1e-5)
    with pytest.raises(ConfigError, match="is not a reward model"):
        make_reward("model", {"of": str(model)})


@pytest.mark.parametrize("templated", [True, False])
def test_a_reward_model_scores_an_empty_answer_too(templated: bool, tmp_path: Path) -> None:
    """Scores have no zero (Bradley-Terry): where all are negative, an answer without one would win its group."""
    judge = make_judge(tmp_path / "judge")
    if not templated:
        (judge / "chat_template.jinja").unlink()
    reward, opened = make_reward("model", {"of": str(judge)}), open_reward_model(str(judge))
    request = "<user>3 says<|end|>\n<assistant>" if templated else "3 says"
    for answer in ("", "  "):
        score = reward(answer, {"prompt": "3 says"})
        ids = opened.encoder.tokenizer(f"{request}{answer}<|end|>")["input_ids"]
        assert score == pytest.approx(opened.score_tokens(torch.tensor([ids])).item(), rel=1e-5)


def make_judge(folder: Path) -> Path:
    """A tiny reward model as a Hugging Face directory."""
    make_model(folder)
    torch.manual_seed(5)
    config = LlamaConfig.from_pretrained(folder, num_labels=1, pad_token_id=0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder

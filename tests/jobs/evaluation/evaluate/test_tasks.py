"""Tasks: lm-eval's own figures item by item, whatever the ranks, the batches, and whoever is killed."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_lines
from ropewalk.jobs.results.readable import read_table
from ropewalk.jobs.runs.models.evaluations import items_file
from tests.jobs.alone import run_here
from tests.jobs.evaluation.evaluate.tasks import choice_task, likelihood_task, rolling_task, write_task, writing_task
from tests.jobs.launch import launch, log_of, make_run, start
from tests.jobs.tiny import tiny_model


@pytest.fixture(autouse=True)
def _environment_as_it_was() -> Iterator[None]:
    """lm-eval sets variables as it is imported."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    tiny_model(root / "model")
    return root


@pytest.fixture(scope="module")
def tasks(folder: Path) -> list[str]:
    lines = [{"name": f"{name} ", "tail": " walks the lane", "right": i % 2} for i, name in enumerate(["anna", "bert", "cora"])]
    names = {"doc_to_choice": "{{[name + 'A', name + 'B']}}", "doc_to_target": "right"}
    files = [
        choice_task(folder / "t", 24),
        choice_task(folder / "t", 12, 2, "shots", num_fewshot=2, fewshot_split="test", fewshot_config={"sampler": "default"}),
        write_task(folder / "t", "names", lines, output_type="multiple_choice", doc_to_text="Who? {{tail}}", **names),
        likelihood_task(folder / "t", 16),
        rolling_task(folder / "t", 6),
        writing_task(folder / "t", 6),
    ]
    return [str(file) for file in files]


@pytest.fixture(scope="module")
def plain(folder: Path, tasks: list[str]) -> dict[str, Any]:
    return evaluate(folder, tasks)[1]


def evaluate(folder: Path, tasks: list[str], ranks: int = 1, **keys: Any) -> tuple[RunDir, dict[str, Any]]:
    run = make_run(folder / "runs", {"model": str(folder / "model"), "tasks": tasks, **keys}, "evaluate")
    if ranks == 1:
        run_here(run)
    else:
        launch(run, ranks)
    return run, {**run.results(), "items": read_lines(items_file(run.path)), "path": run.path}


def decisions(results: dict[str, Any]) -> dict[tuple[str, int], Any]:
    """Decisions of each item: right or wrong, greedy or not, generated text; not the last digit of a sum."""
    return {
        (line["task"], line["item"]): (
            {name: value for name, value in line["values"].items() if name in ("acc", "acc_norm", "exact_match")},
            [answer[1] if isinstance(answer, list) else answer for answer in line["answers"] if not isinstance(answer, float)],
        )
        for line in results["items"]
    }


@pytest.fixture(scope="module")
def oracle(folder: Path, tasks: list[str]) -> Iterator[dict[str, Any]]:
    yield from lm_eval_says(folder, tasks)


def lm_eval_says(folder: Path, tasks: list[str], **keys: Any) -> Iterator[dict[str, Any]]:
    """lm-eval with its own model of transformers, in this process."""
    before = dict(os.environ)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    here = Path.cwd()
    os.chdir(folder / "t")
    try:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
        manager = TaskManager(include_path=str(folder / "t"), include_defaults=False)
        names = [Path(task).stem for task in tasks]
        yield simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0, fewshot_random_seed=0, **keys)
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def test_every_item_is_decided_as_lm_eval_decides_it(plain: dict[str, Any], oracle: dict[str, Any]) -> None:
    items = {(line["task"], line["item"]): line for line in plain["items"]}
    theirs = [(name, sample) for name, samples in oracle["samples"].items() for sample in samples]
    assert len(items) == len(theirs) == 24 + 12 + 3 + 16 + 6 + 6
    for name, sample in theirs:
        line = items[name, sample["doc_id"]]
        for metric in sample["metrics"]:
            assert line["values"][metric] == pytest.approx(sample[metric], rel=1e-5, abs=1e-9), (name, sample["doc_id"])
        for mine, its in zip(line["answers"], sample["filtered_resps"], strict=True):
            assert mine == (its if isinstance(its, str) else pytest.approx(its, rel=1e-5)), (name, sample["doc_id"])
    for name, metrics in plain["scores"].items():
        for metric, score in metrics.items():
            assert score["value"] == pytest.approx(oracle["results"][name][f"{metric},none"], rel=1e-4)
            assert score["n"] == sum(task == name for task, _ in theirs)


TEMPLATE = (
    "{% for message in messages %}[{{message['role']}}]{{message['content']}}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_template_and_examples_as_turns_are_lm_evals(folder: Path, tasks: list[str], tmp_path: Path) -> None:
    """In this process: the job's own entry."""
    from ropewalk.cluster.run.context import JobContext
    from ropewalk.jobs.evaluation.evaluate.job import main

    tiny_model(tmp_path / "model")
    values = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({**values, "chat_template": TEMPLATE}))
    (tmp_path / "t").symlink_to(folder / "t")
    config = {"model": str(tmp_path / "model"), "tasks": [tasks[1]], "chat_template": True, "system": "be brief"}
    run = make_run(tmp_path / "runs", config, "evaluate")
    results = main(JobContext(run=run, attempt=run.begin_attempt()))
    chat = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "be brief"}
    (theirs,) = lm_eval_says(tmp_path, [tasks[1]], **chat)
    items = {line["item"]: line for line in read_lines(items_file(run.path))}
    assert items[0]["prompt"].startswith("[system]be brief[user]Q: ")
    assert items[0]["prompt"].count("[assistant]") == 3  # two examples, and the question
    for sample in theirs["samples"]["shots"]:
        line = items[sample["doc_id"]]
        assert line["prompt"] == sample["arguments"][0][0]
        assert [answer[0] for answer in line["answers"]] == pytest.approx([a[0] for a in sample["filtered_resps"]], rel=1e-5)
    assert results["scores"]["shots"]["acc"]["value"] == theirs["results"]["shots"]["acc,none"]  # type: ignore[index]


def test_without_lm_eval_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ropewalk.cluster.errors import ConfigError
    from ropewalk.jobs.evaluation.tasks.load import need_lm_eval

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.tasks", raising=False)
    with pytest.raises(ConfigError, match=r"is not installed .*ropewalk\[tasks\]"):
        need_lm_eval()


def test_scores_have_their_evidence(plain: dict[str, Any]) -> None:
    rights = [line["values"]["acc"] for line in plain["items"] if line["task"] == "choice"]
    score = plain["scores"]["choice"]["acc"]
    share = sum(rights) / len(rights)
    assert score["value"] == pytest.approx(share)
    assert score["standard_error"] == pytest.approx((share * (1 - share) / (len(rights) - 1)) ** 0.5)
    assert score["hash"].startswith("xxh3:")
    assert plain["scores"]["choice"]["acc_norm"]["hash"] == score["hash"] != plain["scores"]["shots"]["acc"]["hash"]
    assert plain["scores"]["texts"]["bits_per_byte"]["standard_error"] > 0
    table = read_table(plain["path"] / "tables/scores.json")
    assert table is not None
    assert ["choice", "acc", share, score["standard_error"], len(rights)] in table.rows


@pytest.mark.soak(
    "nine ranks; test_an_evaluation_that_is_killed_and_stopped_repeats_nothing has batches of one on one to three ranks"
)
@pytest.mark.parametrize(
    ("ranks", "keys"),
    [
        (2, {"shard": "always"}),
        (3, {"batch_size": 4}),
        (1, {"batch_size": 32, "batch_tokens": 4000}),
        (1, {"batch_size": 1}),
        (2, {"batch_size": 16}),
    ],
)
def test_decisions_do_not_depend_on_ranks_and_batches(
    folder: Path, tasks: list[str], plain: dict[str, Any], ranks: int, keys: dict[str, Any]
) -> None:
    result = evaluate(folder, tasks[::-1], ranks, **keys)[1]
    assert decisions(result) == decisions(plain)
    assert result["scores"]["choice"] == plain["scores"]["choice"]


def test_an_evaluation_that_is_killed_and_stopped_repeats_nothing(folder: Path, tasks: list[str], plain: dict[str, Any]) -> None:
    run = make_run(folder / "runs", {"model": str(folder / "model"), "tasks": tasks, "batch_size": 1}, "evaluate")
    going = start(run, 2, TEST_HOOK="slow_answers")
    going.until(lambda: len(written(run)) >= 8)
    going.kill()
    going = start(run, 3, TEST_HOOK="slow_answers")
    going.until(lambda: len(written(run)) >= 20)
    (run.path / "stop-here").touch()
    assert going.wait() == [85] * 3
    (run.path / "stop-here").unlink()
    run_here(run)
    assert max(Counter(line["key"] for line in written(run)).values()) == 1
    results = {**run.results(), "items": read_lines(items_file(run.path))}
    assert decisions(results) == decisions(plain)
    before = len(written(run))
    run_here(run)  # everything is there
    assert len(written(run)) == before


def written(run: RunDir) -> list[dict[str, Any]]:
    return [line for path in sorted((run.path / "ledger/answers").glob("*.jsonl")) for line in read_lines(path)]


# --- the gate


def test_a_gate_that_refuses_names_figure_and_interval(folder: Path, tasks: list[str]) -> None:
    require = {"choice": ">= 0.95 by 2se", "choice/acc_norm": ">= 0", "ending/acc": "<= 1"}
    run = make_run(
        folder / "runs", {"model": str(folder / "model"), "tasks": [tasks[0], tasks[3]], "require": require}, "evaluate"
    )
    assert 42 in start(run, 2).wait()
    results = run.results()
    assert not results["gate"]["passed"]
    (failed,) = results["gate"]["failed"]
    assert (failed["name"], failed["require"]) == ("choice", ">= 0.95 by 2se")
    assert failed["interval"][0] < failed["value"] < failed["interval"][1]
    assert results["scores"]["choice"]["acc"]["value"] == failed["value"]
    (error,) = [each for each in run.read_errors(1) if each["type"] == "GateError"]
    assert "choice is" in error["message"]
    assert "95% interval" in error["message"]
    assert "refused" in (run.path / "evaluation/report.html").read_text()


def test_a_gate_that_passes(folder: Path, tasks: list[str]) -> None:
    _, result = evaluate(folder, [tasks[0]], require={"choice": ">= 0", "choice/acc_norm": "<= 1"}, limit=5)
    assert result["gate"] == {"passed": True, "failed": []}
    assert result["scores"]["choice"]["acc"]["n"] == 5


# --- bad input


def line(**changes: Any) -> dict[str, Any]:
    return {"question": "which", "choices": ["a", "b"], "answer": 0, **changes}


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}


def bad_tasks(folder: Path) -> dict[str, str]:
    """A task's file, or a name, for each message."""
    without = [{"question": "which", "choices": ["a", "b"]}]
    (folder / "broken").mkdir(parents=True)
    (folder / "broken/broken.yaml").write_text("task: [broken\n")
    (folder / "broken/plain.yaml").write_text("name: no task\n")
    gone = write_task(folder / "gone", "gone", [line()], **CHOICE)
    gone.with_suffix(".jsonl").unlink()
    files = {
        "doc_to_target names the column 'answer'; the columns of its data are question, choices": write_task(
            folder / "1", "unanswered", without, **CHOICE
        ),
        "item 1: it has no answer": write_task(folder / "2", "holes", [line(), line(answer=None)], **CHOICE),
        "item 1: its answer 7 is neither one of its choices": write_task(
            folder / "3", "outside", [line(), line(answer=7)], **CHOICE
        ),
        "'questoin' is undefined": write_task(folder / "4", "typo", [line()], **{**CHOICE, "doc_to_text": "{{questoin}}"}),
        "each must have a text": write_task(folder / "5", "blank", [line(), line(choices=["a", ""])], **CHOICE),
        "broken.yaml cannot be read": folder / "broken/broken.yaml",
        "it has no key `task`": folder / "broken/plain.yaml",
        "gone.yaml cannot be loaded": gone,
    }
    return {message: str(file) for message, file in files.items()}


def test_what_is_wrong_with_a_task_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    from ropewalk.cluster.config_reader import load_config
    from ropewalk.cluster.errors import RopewalkError
    from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
    from ropewalk.jobs.evaluation.tasks.load import load_tasks

    tiny_model(tmp_path / "model")
    for message, file in bad_tasks(tmp_path / "bad").items():
        config: Any = load_config(EvaluateConfig, {"model": str(tmp_path / "model"), "tasks": [file]})
        with pytest.raises(RopewalkError) as error:
            load_tasks(config)
        assert message in str(error.value), error.value


def test_a_model_without_a_tokenizer_ends_the_run(folder: Path, tasks: list[str]) -> None:
    tiny_model(folder / "bare", tokenizer=False)
    run = make_run(folder / "runs", {"model": str(folder / "bare"), "tasks": tasks[:1]}, "evaluate")
    assert start(run, 1).wait() == [42]
    assert "has no tokenizer" in log_of(run)


def test_texts_longer_than_the_model_sees_are_counted(folder: Path) -> None:
    lines = [line(question="rope " * 100), line()]
    task = write_task(folder / "long", "long", lines, **CHOICE)
    result = evaluate(folder, [str(task)])[1]
    assert result["truncated"] == {"long": 2}
    assert json.loads((folder / "model/config.json").read_text())["max_position_embeddings"] == 256

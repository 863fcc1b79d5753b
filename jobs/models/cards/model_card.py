"""The model card: README.md with the metadata of the Hugging Face hub (Mitchell et al., 1810.03993)."""

import json
from typing import Any

import yaml

from ropewalk.jobs.models.cards.model_facts import Measured, ModelFacts
from ropewalk.jobs.models.cards.public import NOT_STATED, code, filled, plain, public

# by kind of head: kind of model, and its use
KINDS = {
    "causal_lm": ("causal language model", "Text generation"),
    "reward": ("reward model, which scores whole texts", "Comparing answers"),
}
SETTINGS = ("steps", "seq_len", "batch", "optim", "method", "lora", "precision", "seed", "parallel")


def model_card(facts: ModelFacts) -> str:
    """Return README.md of the exported model."""
    front = yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True)
    sections = "\n\n".join(f"## {title}\n\n{text}" for title, text in _sections(facts).items())
    return f"---\n{front}---\n\n# {facts.name}\n\n{sections}\n"


def metadata(facts: ModelFacts) -> dict[str, Any]:
    """Return the front matter with all keys that the hub requires."""
    languages = sorted({language for data in facts.data for language in data.languages})
    front_matter: dict[str, Any] = {
        **_license(facts),
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if facts.head == "reward" else "text-generation",
        "tags": ["ropewalk", facts.job],
        **({"language": languages} if languages else {}),
    }
    if facts.measured:
        front_matter["model-index"] = [{"name": facts.name, "results": [_result(measurement) for measurement in facts.measured]}]
    return front_matter


def kind_of(facts: ModelFacts) -> tuple[str, str]:
    """Return the kind of model, and its use."""
    return KINDS.get(facts.head, KINDS["causal_lm"])


def _license(facts: ModelFacts) -> dict[str, str]:
    if facts.license:
        return {"license": facts.license}
    return {"license": "other", "license_name": NOT_STATED.replace(" ", "-"), "license_link": "README.md"}


def _result(measurement: Measured) -> dict[str, Any]:
    task = {"type": "text-generation", "name": f"ropewalk {measurement.job}"}
    dataset = {"name": measurement.name.rpartition("/")[0] or "held-out text", "type": "local"}
    metric: dict[str, Any] = {"type": measurement.name.rpartition("/")[2], "value": measurement.value, "verified": False}
    if measurement.standard_error is not None:
        metric["args"] = {"standard_error": measurement.standard_error, "n": measurement.n}
    return {"task": task, "dataset": dataset, "metrics": [metric]}


def _sections(facts: ModelFacts) -> dict[str, str]:
    ancestors = " ← ".join(map(code, facts.lineage))
    base = f"further trained from {ancestors}" if ancestors else "trained from random weights"
    return {
        "Model details": _table(
            {
                "kind": f"{kind_of(facts)[0]}, {base}",
                "architecture": plain(facts.architecture),
                "parameters": f"{facts.num_parameters:,}",
                "made by": f"ropewalk {facts.job}, run `{facts.name}`, submitted on {facts.created}",
                "checkpoint": f"step {facts.step}" if facts.step is not None else None,
                "code": f"commit {facts.commit}" if facts.commit else None,
                "licence": f"{plain(facts.license)}, from its base model" if facts.license else None,
            }
        ),
        "Intended use": (
            f"{kind_of(facts)[1]} and further training by people who can judge its output."
            " No further use was stated.\n\n"
            "Out of scope: decisions about people, and advice on health, law or money, without human responsibility."
        ),
        "Training data": _data(facts),
        "Training procedure": _procedure(facts),
        "Evaluation": _evaluation(facts),
        "Bias, risks and limitations": _limits(facts),
        "How to use": _usage(facts),
        "Files": _table({plain(name): f"SHA-256 `{digest}`" for name, digest in facts.files.items()} or {"weights": None}),
    }


def _usage(facts: ModelFacts) -> str:
    kind = "AutoModelForSequenceClassification" if facts.head == "reward" else "AutoModelForCausalLM"
    lines = (f"from transformers import {kind}, AutoTokenizer", "", f'model = {kind}.from_pretrained("DIR")')
    return "\n".join(("```python", *lines, 'tokenizer = AutoTokenizer.from_pretrained("DIR")', "```"))


def _table(rows: dict[str, Any]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {filled(value)} |" for name, value in rows.items())


def _data(facts: ModelFacts) -> str:
    rows = []
    for data in facts.data:
        totals = data.manifest.totals
        size = f"{totals.documents:,} documents, {totals.tokens:,} tokens"
        rows.append(f"- {code(data.name)}: {size}, content {code(data.manifest.hash)}")
    rows += [f"- {code(other.name)}: {other.description}" for other in facts.other_data]
    return "\n".join(rows) or f"Its run names no data set: {NOT_STATED}."


def _procedure(facts: ModelFacts) -> str:
    settings = {key: facts.config[key] for key in SETTINGS if facts.config.get(key) not in (None, {}, [])}
    programs = ", ".join(f"{name} {text}" for name, text in facts.versions.items())
    text = f"```json\n{json.dumps(public(settings), indent=1, ensure_ascii=False)}\n```\n\nMade with {filled(programs)}."
    figures = ", ".join(f"{name} {value:.6g}" for name, value in facts.results.items())
    return f"{text}\n\nFinal figures: {filled(figures)}."


def _evaluation(facts: ModelFacts) -> str:
    if not facts.measured:
        return "This model was not measured: no `evaluate` or `audit` run names it. Measure it before you use it."
    head = "| measured | value | standard error | n | by |\n|---|---|---|---|---|\n"
    rows = []
    for measurement in facts.measured:
        error = f"{measurement.standard_error:.2g}" if measurement.standard_error is not None else None
        row = (
            f"| {plain(measurement.name)} | {measurement.value:.4g} | {filled(error)} | {filled(measurement.n)} "
            f"| `{measurement.run}` |"
        )
        rows.append(row)
    return head + "\n".join(rows)


def _condition_words(condition: Any) -> str:
    return plain(condition["words"] if isinstance(condition, dict) else condition)


def _limits(facts: ModelFacts) -> str:
    text = (
        "It may repeat false statements of its training data, and parts of it verbatim."
        " A low bias score does not prove that a model has no bias: the suites cover few groups, in English."
    )
    if not any(measurement.job == "audit" for measurement in facts.measured):
        return f"{text}\n\nIt was not audited: run `ropewalk run audit model={facts.name} suites=[...]`."
    gates = [
        f"- `{gate['run']}`: "
        + ("passed" if gate.get("passed") else f"refused: {'; '.join(map(_condition_words, gate.get('failed') or ()))}")
        for gate in facts.gates
    ]
    return f"{text}\n\nIts gates:\n\n" + ("\n".join(gates) or "none")

"""The model card: README.md with the metadata that the Hugging Face hub reads (Mitchell et al., 1810.03993)."""

import json
from typing import Any

import yaml

from ropewalk.jobs.models.cards.model_facts import Measured, ModelFacts
from ropewalk.jobs.models.cards.public import NOT_STATED, filled, public

# of each kind of head: what the model is, and what it is for
KINDS = {
    "causal_lm": ("causal language model", "Text generation"),
    "reward": ("reward model, which gives a whole text one score", "Comparing answers"),
}
SETTINGS = ("steps", "seq_len", "batch", "optim", "method", "lora", "precision", "seed", "parallel")


def model_card(facts: ModelFacts) -> str:
    """README.md of the exported model."""
    front = yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True)
    sections = "\n\n".join(f"## {title}\n\n{text}" for title, text in _sections(facts).items())
    return f"---\n{front}---\n\n# {facts.name}\n\n{sections}\n"


def metadata(facts: ModelFacts) -> dict[str, Any]:
    """The front matter; every key that the hub asks for is filled."""
    languages = sorted({language for data in facts.data for language in data.languages})
    found: dict[str, Any] = {
        **_license(facts),
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if facts.head == "reward" else "text-generation",
        "tags": ["ropewalk", facts.job],
        **({"language": languages} if languages else {}),
    }
    if facts.measured:
        found["model-index"] = [{"name": facts.name, "results": [_result(one) for one in facts.measured]}]
    return found


def kind_of(facts: ModelFacts) -> tuple[str, str]:
    """What the model is, and what it is for."""
    return KINDS.get(facts.head, KINDS["causal_lm"])


def _license(facts: ModelFacts) -> dict[str, str]:
    if facts.license:
        return {"license": facts.license}
    return {"license": "other", "license_name": NOT_STATED.replace(" ", "-"), "license_link": "README.md"}


def _result(one: Measured) -> dict[str, Any]:
    task = {"type": "text-generation", "name": f"ropewalk {one.job}"}
    dataset = {"name": one.name.rpartition("/")[0] or "held-out text", "type": "local"}
    metric: dict[str, Any] = {"type": one.name.rpartition("/")[2], "value": one.value, "verified": False}
    if one.standard_error is not None:
        metric["args"] = {"standard_error": one.standard_error, "n": one.n}
    return {"task": task, "dataset": dataset, "metrics": [metric]}


def _sections(facts: ModelFacts) -> dict[str, str]:
    began = " ← ".join(f"`{name}`" for name in facts.lineage)
    base = f"further trained from {began}" if began else "trained from random weights"
    return {
        "Model details": _table(
            {
                "kind": f"{kind_of(facts)[0]}, {base}",
                "architecture": facts.architecture,
                "parameters": f"{facts.num_parameters:,}",
                "made by": f"ropewalk {facts.job}, run `{facts.name}`, submitted on {facts.created}",
                "checkpoint": f"step {facts.step}" if facts.step is not None else None,
                "code": f"commit {facts.commit}" if facts.commit else None,
                "licence": f"{facts.license}, that of the model it began with" if facts.license else None,
            }
        ),
        "Intended use": (
            f"{kind_of(facts)[1]} and further training by people who can judge its output."
            " Its owner has stated no further use.\n\n"
            "Out of scope: decisions about people, and advice on health, law or money, without a person who answers for them."
        ),
        "Training data": _data(facts),
        "Training procedure": _procedure(facts),
        "Evaluation": _evaluation(facts),
        "Bias, risks and limitations": _limits(facts),
        "How to use": _usage(facts),
        "Files": _table({name: f"SHA-256 `{digest}`" for name, digest in facts.files.items()} or {"weights": None}),
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
        rows.append(f"- `{data.name}`: {size}, content `{data.manifest.hash}`")
    rows += [f"- `{one.name}`: {one.told}" for one in facts.other_data]
    return "\n".join(rows) or f"Its run names no data set: {NOT_STATED}."


def _procedure(facts: ModelFacts) -> str:
    settings = {key: facts.config[key] for key in SETTINGS if facts.config.get(key) not in (None, {}, [])}
    programs = ", ".join(f"{name} {text}" for name, text in facts.versions.items())
    text = f"```json\n{json.dumps(public(settings), indent=1, ensure_ascii=False)}\n```\n\nMade with {filled(programs)}."
    figures = ", ".join(f"{name} {value:.6g}" for name, value in facts.results.items())
    return f"{text}\n\nAt its end: {filled(figures)}."


def _evaluation(facts: ModelFacts) -> str:
    if not facts.measured:
        return "Nobody has measured this model: no `evaluate` and no `audit` run names it. Measure it before you trust it."
    head = "| measured | value | standard error | n | by |\n|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {one.name} | {one.value:.4g} | {filled(f'{one.standard_error:.2g}' if one.standard_error is not None else None)}"
        f" | {filled(one.n)} | `{one.run}` |"
        for one in facts.measured
    )


def _limits(facts: ModelFacts) -> str:
    text = (
        "It repeats what its training data says, true or not, and may repeat parts of it verbatim."
        " A low bias score is no proof that a model has no bias: the suites know few groups, in English."
    )
    if not any(one.job == "audit" for one in facts.measured):
        return f"{text}\n\nIt was never audited: run `ropewalk run audit model={facts.name} suites=[...]`."
    gates = [
        f"- `{gate['run']}`: "
        + ("passed" if gate.get("passed") else f"refused: {json.dumps(public(gate.get('failed')), default=str)}")
        for gate in facts.gates
    ]
    return f"{text}\n\nIts gates:\n\n" + ("\n".join(gates) or "none was asked for")

"""The data card: report/data-card.md of a data set (Datasheets for Datasets, Gebru et al., 1803.09010)."""

import json
from typing import Any

import yaml

from ropewalk.jobs.models.cards.data_facts import DataFacts
from ropewalk.jobs.models.cards.public import NOT_STATED, code, filled, plain

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
_MAX_INPUTS = 20


def data_card(facts: DataFacts) -> str:
    """Return the text of data-card.md."""
    front = yaml.safe_dump(metadata(facts), sort_keys=False, allow_unicode=True)
    sections = "\n\n".join(f"## {title}\n\n{text}" for title, text in _sections(facts).items())
    return f"---\n{front}---\n\n# {facts.name}\n\n{sections}\n"


def metadata(facts: DataFacts) -> dict[str, Any]:
    """Return the front matter with the keys of the Hugging Face hub."""
    documents = facts.manifest.totals.documents
    size = next((name for limit, name in _SIZES if documents < limit), "n>10M")
    splits = [split for split in ("train", "validation") if facts.manifest.table.of_split(split).shards]
    folders = {"train": "shards", "validation": "validation"}
    files = [{"split": split, "path": f"{folders[split]}/*.arrow"} for split in splits]
    return {
        "license": "other",
        "license_name": NOT_STATED.replace(" ", "-"),
        "pretty_name": facts.name,
        "task_categories": ["text-generation"],
        "size_categories": [size],
        **({"language": facts.languages} if facts.languages else {}),
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _sections(facts: DataFacts) -> dict[str, str]:
    manifest, totals = facts.manifest, facts.manifest.totals
    return {
        "Summary": (
            f"Tokenized text for training language models, made by `ropewalk run preprocess`: {totals.documents:,} documents,"
            f" {totals.tokens:,} tokens, {totals.bytes:,} bytes of text. Content `{manifest.hash}`."
        ),
        "Composition": _counts(facts),
        "Sources": _inputs(facts),
        "Processing": f"```json\n{json.dumps(facts.config, indent=1, ensure_ascii=False, default=str)}\n```",
        "Excluded documents": _rejected(facts),
        "Tokenizer": (
            f"{code(filled(manifest.tokenizer.name))}, {manifest.tokenizer.vocabulary:,} tokens,"
            f" files {code(manifest.tokenizer.hash)},"
            f" by {manifest.tokenizer.backend} {manifest.tokenizer.version}; stored in `{manifest.tokenizer.path}/`."
        ),
        "Personal data": _personal(facts),
        "Biases": (
            "The documents have the views of their authors; groups of people in them were not balanced."
            " `ropewalk run audit` measures how often filters drop texts about each group, and the biases of a trained model."
        ),
        "Licence": f"Licence of the documents: {NOT_STATED}. Check their sources before you publish them.",
        "Integrity": (
            "`manifest.json` has the checksum of every shard and of itself; `ropewalk` verifies a shard when it is opened."
            " The same input and keys give the same bytes."
        ),
    }


def _counts(facts: DataFacts) -> str:
    totals = facts.manifest.totals
    rows = [
        f"| {name} | {count.documents:,} | {count.tokens:,} | {count.bytes:,} | {facts.manifest.table.of_split(name).shards} |"
        for name, count in (("train", totals.train), ("validation", totals.validation))
    ]
    return "| split | documents | tokens | bytes | shards |\n|---|---|---|---|---|\n" + "\n".join(rows)


def _inputs(facts: DataFacts) -> str:
    if not facts.manifest.inputs:
        return f"The manifest names no input: {NOT_STATED}."
    files = sorted(facts.manifest.inputs, key=lambda file: -file.size)
    shown, rest = files[:_MAX_INPUTS], files[_MAX_INPUTS:]
    rows = [
        f"| {plain(file.path)} | {file.size:,} | `{file.checksum}` | {file.documents:,} | {file.rejected:,} |" for file in shown
    ]
    if rest:
        size, documents, rejected = (sum(getattr(file, key) for file in rest) for key in ("size", "documents", "rejected"))
        rows.append(f"| {len(rest):,} others | {size:,} | in `manifest.json` | {documents:,} | {rejected:,} |")
    return "| file | bytes | checksum | kept | rejected |\n|---|---|---|---|---|\n" + "\n".join(rows)


def _rejected(facts: DataFacts) -> str:
    rejected = facts.manifest.rejected
    if not rejected.total:
        return "Nothing: no document was rejected."
    rows = [f"| {plain(reason)} | {count:,} |" for reason, count in sorted(rejected.reasons.items(), key=lambda item: -item[1])]
    head = f"{rejected.total:,} documents; `rejected/` names each of them.\n\n| reason | documents |\n|---|---|\n"
    return head + "\n".join(rows)


def _personal(facts: DataFacts) -> str:
    chosen = (facts.manifest.config.get("pii") or {}).get("replace")
    if not chosen:
        return "The data set was not searched for personal data (`pii` was not set). Assume that it contains some."
    counts = facts.report.get("pii")
    counts_text = f" Replaced: {', '.join(f'{plain(name)} {count:,}' for name, count in counts.items())}." if counts else ""
    rest = " Data that no pattern recognizes, such as names, remains."
    return f"Replaced where they were recognized: {', '.join(chosen)}.{counts_text}{rest}"

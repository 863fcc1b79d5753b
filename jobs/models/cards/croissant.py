"""Croissant 1.0 metadata of a data set: files and records as JSON-LD (https://docs.mlcommons.org/croissant)."""

import hashlib
from typing import Any

from ropewalk.jobs.models.cards.data_facts import DataFacts
from ropewalk.jobs.models.cards.public import NOT_STATED

ARROW = "application/vnd.apache.arrow.file"
_UNREGISTERED = {"uint16": "sc:Integer", "uint32": "sc:Integer"}
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        word: f"cr:{word}"
        for word in (
            *("citeAs", "column", "extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes"),
            *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
            *("replace", "samplingRate", "separator", "source", "subField", "transform", "equivalentProperty"),
        )
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "sc": "https://schema.org/",
}


def croissant(facts: DataFacts, published: str) -> dict[str, Any]:
    """Return the content of croissant.json in the data set's report/; `published` is a day such as 2026-01-31.

    Shards are described as sets of files: their checksums are in the manifest, whose SHA-256 is given here.
    """
    totals = facts.manifest.totals
    splits = [split for split in ("train", "validation") if facts.manifest.table.of_split(split).shards]
    collection = ", ".join(sorted({entry.path.rpartition("/")[2] for entry in facts.manifest.inputs})[:20]) or NOT_STATED
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": facts.name,
        "description": f"{totals.documents} documents as {totals.tokens} tokens, for training language models.",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "license": f"Licence of the documents: {NOT_STATED}",
        "url": f"urn:ropewalk:{facts.manifest.hash}",
        "version": facts.version,
        "datePublished": published,
        "creator": {"@type": "sc:Organization", "name": "the user of ropewalk preprocess"},
        "citeAs": f"{facts.name}, content {facts.manifest.hash}",
        "rai:dataCollection": f"Read from: {collection}",
        "rai:dataPreprocessingProtocol": [
            f"tokenized by {facts.manifest.tokenizer.name}, {facts.manifest.tokenizer.vocabulary} tokens",
            *(f"{key}: {value}" for key, value in facts.config.items() if value not in (None, [], {})),
        ],
        "rai:personalSensitiveInformation": _personal(facts),
        "rai:dataBiases": "Not balanced over groups of people; see data-card.md.",
        "distribution": [_manifest(facts), *(_shards(split) for split in splits)],
        "recordSet": [_records(split, facts.manifest.token_type) for split in splits],
    }


def _personal(facts: DataFacts) -> list[str]:
    replaced = (facts.manifest.config.get("pii") or {}).get("replace") or []
    return [f"replaced where recognized: {kind}" for kind in replaced] or ["not searched"]


def _manifest(facts: DataFacts) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": "manifest.json",
        "name": "manifest.json",
        "description": "Checksum, documents and tokens of every shard.",
        "contentUrl": "manifest.json",
        "encodingFormat": "application/json",
        "sha256": hashlib.sha256(facts.manifest_bytes).hexdigest(),
    }


def _shards(split: str) -> dict[str, Any]:
    folder = "shards" if split == "train" else "validation"
    return {
        "@type": "cr:FileSet",
        "@id": f"{split}-shards",
        "name": f"{split}-shards",
        "description": f"The {split} split as Arrow IPC files.",
        "encodingFormat": ARROW,
        "includes": f"{folder}/*.arrow",
    }


def _records(split: str, token_type: str) -> dict[str, Any]:
    columns = {
        "id": ("sc:Text", "The document's id."),
        "source": ("sc:Text", "Origin of the document."),
        "tokens": (_UNREGISTERED[token_type], f"The document's tokens, as {token_type}."),
    }
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{split}/{column}",
            "name": f"{split}/{column}",
            "description": text,
            "dataType": kind,
            **({"repeated": True} if column == "tokens" else {}),
            "source": {"fileSet": {"@id": f"{split}-shards"}, "extract": {"column": column}},
        }
        for column, (kind, text) in columns.items()
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "description": f"Documents of the {split} split.",
        "field": fields,
    }

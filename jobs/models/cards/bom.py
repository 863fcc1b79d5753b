"""The bill of materials of a model (ML-BOM): CycloneDX 1.6 with the fields of the model card, data sets and programs."""

import time
import uuid
from typing import Any

from ropewalk.jobs.models.cards.model_card import kind_of
from ropewalk.jobs.models.cards.model_facts import Measured, ModelFacts
from ropewalk.jobs.models.cards.public import NOT_STATED, filled

_NAMESPACE = uuid.UUID("6f1d3c7e-2a53-5a5e-9a0c-70f0b6c0a0d1")
_APPROACH = {"finetune": "supervised", "align": "reinforcement-learning"}


def bill_of_materials(facts: ModelFacts) -> dict[str, Any]:
    """Return the content of ml-bom.json. The same model gets the same serial number."""
    model = _model(facts)
    components = [*_data(facts), *_base(facts), *_programs(facts)]
    refs = [component["bom-ref"] for component in components]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'{facts.name} {facts.step} {sorted(facts.files.items())}')}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "tools": {
                "components": [{"type": "application", "name": "ropewalk", "version": filled(facts.versions.get("ropewalk"))}]
            },
            "component": model,
        },
        "components": components,
        "dependencies": [{"ref": "model", "dependsOn": refs}, *({"ref": ref} for ref in refs)],
    }


def _model(facts: ModelFacts) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": facts.name,
        "version": f"step-{facts.step}" if facts.step is not None else "exported",
        "description": f"A {kind_of(facts)[0]} of {facts.num_parameters:,} parameters, by ropewalk {facts.job}.",
        "licenses": [{"license": {"name": facts.license or NOT_STATED}}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": _APPROACH.get(facts.job, "self-supervised")},
                "task": "text-classification" if facts.head == "reward" else "text-generation",
                "architectureFamily": "transformer",
                "modelArchitecture": filled(facts.architecture),
                "datasets": [{"ref": component["bom-ref"]} for component in _data(facts)],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "number" if facts.head == "reward" else "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": [_metric(measurement) for measurement in facts.measured]},
            "considerations": {
                "users": ["people who can judge its output"],
                "useCases": ["text generation", "further training"],
                "technicalLimitations": ["It may repeat false statements of its training data."],
                "ethicalConsiderations": [
                    {"name": "stereotypes and personal data", "mitigationStrategy": "measure with ropewalk audit, and gate on it"}
                ],
            },
        },
        "properties": [
            {"name": "ropewalk:parameters", "value": str(facts.num_parameters)},
            {"name": "ropewalk:code", "value": filled(facts.commit)},
            *({"name": f"ropewalk:sha256:{name}", "value": digest} for name, digest in facts.files.items()),
        ],
        **({"hashes": [{"alg": "SHA-256", "content": next(iter(facts.files.values()))}]} if len(facts.files) == 1 else {}),
    }


def _metric(measurement: Measured) -> dict[str, Any]:
    metric: dict[str, Any] = {
        "type": measurement.name.rpartition("/")[2],
        "value": f"{measurement.value:.6g}",
        "slice": measurement.name,
    }
    if measurement.interval is not None:
        metric["confidenceInterval"] = {
            "lowerBound": f"{measurement.interval[0]:.6g}",
            "upperBound": f"{measurement.interval[1]:.6g}",
        }
    return metric


def _data(facts: ModelFacts) -> list[dict[str, Any]]:
    described = [
        (
            data.name,
            data.version,
            f"{data.manifest.totals.documents:,} documents, {data.manifest.totals.tokens:,} tokens",
            data.manifest.hash,
        )
        for data in facts.data
    ]
    others = [(other.name, NOT_STATED, other.description, NOT_STATED) for other in facts.other_data]
    return [
        {
            "type": "data",
            "bom-ref": f"data-{number}",
            "name": name,
            "version": version,
            "description": text,
            "data": [{"type": "dataset", "name": name, "description": text}],
            "properties": [{"name": "ropewalk:content", "value": content}],
        }
        for number, (name, version, text, content) in enumerate([*described, *others])
    ]


def _base(facts: ModelFacts) -> list[dict[str, Any]]:
    if not facts.lineage:
        return []
    text = "The base model of the training."
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": "base-model",
            "name": facts.lineage[0],
            "version": NOT_STATED,
            "description": text,
        }
    ]


def _programs(facts: ModelFacts) -> list[dict[str, Any]]:
    programs = []
    for name, text in facts.versions.items():
        kind, url = ("platform", f"pkg:generic/python@{text}") if name == "python" else ("library", f"pkg:pypi/{name}@{text}")
        programs.append(
            {"type": kind, "bom-ref": f"program-{name}", "name": name, "version": text, "purl": url.replace("+", "%2B")}
        )
    return programs

"""Models for a registry: runs with a checkpoint and directories with weights, as far as the registry looks at them."""

import json
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.run.names import RESULT
from ropewalk.cluster.spec import Outcome, RunState
from ropewalk.jobs.training.loop.weights.content_hash import hash_of_model

MODEL_RECORD = {
    "fingerprint": {},
    "seq_len": 8,
    "tokenizer": {"name": "bytes", "hash": "xxh3:0", "vocabulary": 257, "end_of_document": 0, "version": "0"},
}


def trained(root: Path, *steps: int, name: str = "train", job: str = "finetune", **config: Any) -> RunDir:
    """A run that trains, with a checkpoint of each step."""
    run = RunDir.create(name, {"job": job, "config": {"steps": 4, **config}, "code": {"commit": "c0ffee"}}, root)
    write_json(run.model_record, {**MODEL_RECORD, **({"weights": config["model"]} if "model" in config else {})})
    for step in steps or (4,):
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        files = [{"path": "a", "size": 1, "checksum": f"{run.id}-{step}"}]
        (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return run


def directory(path: Path, weights: bytes = b"w") -> Path:
    """A Hugging Face directory, as far as its names go."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def judged(root: Path, model: str, *, passed: bool = True, step: int | None = 4, job: str = "evaluate", **config: Any) -> RunDir:
    """A run that held a model to a gate: a directory without a step, or a run."""
    source = Path(model) if step is None else RunDir(root / model.partition("@")[0])
    record = {"job": job, "config": {"model": model, "require": {"quiz": ">= 0.5"}, **config}}
    run = RunDir.create(job, record, root)
    number = run.begin_attempt()
    gate = {"passed": passed, "failed": [] if passed else [{"words": "quiz is 0.4, and must be >= 0.5"}]}
    figures = {"quiz": {"require": ">= 0.5", "value": 0.6 if passed else 0.4, "standard_error": 0.01, "n": 100}}
    weights = hash_of_model(source, step)
    results = {"gate": gate, "figures": figures, "model_step": step, "model_weights": weights}
    write_json(run.attempt_dir(number) / RESULT, results)
    state = RunState.SUCCEEDED if passed else RunState.REFUSED
    run.write_outcome(number, Outcome(state=state, exit_code=0, cause="done"))
    return run

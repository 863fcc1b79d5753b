"""The unsharded model of a run's checkpoint, in one process: no process group, no GPU, no job's configuration."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.config import LoraConfig
from ropewalk.jobs.training.loop.grid import put_on_grid
from ropewalk.jobs.training.loop.model_config import config_from_fingerprint, model_fingerprint
from ropewalk.jobs.training.loop.model_record import Head, Weights, checkpoint_place, find_source_run, require_record
from ropewalk.jobs.training.loop.sharing import share_layers, unshare_layers
from ropewalk.sharding.checkpoint import newest_complete
from ropewalk.sharding.floats import nulled
from ropewalk.sharding.manifest import CheckpointManifest
from ropewalk.sharding.state import EMA, MODEL
from ropewalk.sharding.storage import parse_index, read_tensors

LORA = "lora"  # the key under which a record keeps the options of a low-rank adapter
ADDED_TOKENS = "added_tokens"  # the key of the tokens whose embeddings an adapter trains beside its matrices
HEAD = "head"  # the key of a fingerprint that says which head a model has, where it does not say the next token


def load_model(run: RunDir, step: int | None = None, *, merge: bool = True, ema: bool = False) -> tuple[Any, CheckpointManifest]:
    """The full model of the newest complete checkpoint (or that of `step`), on the CPU in fp32, in evaluation mode.

    A low-rank adapter is merged into the weights beside it, unless `merge` is False; weights that were trained on a grid lie on
    it. With `ema` what was trained is the mean over the steps. Raises ConfigError for a run that trains no model or keeps no
    mean, CheckpointError where there is no such checkpoint.
    """
    record = require_record(run)
    folder, manifest = newest_complete(checkpoint_place(run), step)
    index = parse_index(folder.read(manifest.index), folder.url)
    tensors = read_tensors(folder, index, MODEL)
    if ema:
        means = read_tensors(folder, index, EMA)
        if not means:
            raise ConfigError(f"run {run.id} keeps no running mean of its weights; train with ema.decay set, or leave --ema out")
        tensors |= means
    if record.adapter is None:
        model = empty_model(config_from_fingerprint(without_head(manifest.identity)), record.head)
        missing = {name for name, _ in model.named_parameters()} - tensors.keys()
    else:  # the rest comes from where it came from in training
        model = _adapted(
            first_weights(config_from_fingerprint(record.fingerprint), record.weights, run, record.head), record.adapter
        )
        missing = tensors.keys() - model.state_dict().keys()
    if missing:
        raise CheckpointError(f"{folder.url}: does not fit the model: {', '.join(sorted(missing)[:3])}; choose an older step")
    model.load_state_dict(tensors, strict=False)  # a tied weight is there once
    identity = model_fingerprint(model.config)
    assert record.adapter is not None or without_head(manifest.identity) in (identity, nulled(identity))
    if record.adapter is not None and merge:
        model = _merged(model, record.adapter)
    if record.grid is not None:
        put_on_grid(model, record.grid)
    return unshare_layers(model).eval(), manifest


def best_step(run: RunDir) -> int:
    """The step of the checkpoint whose validation was the best so far. Raises ConfigError where the run keeps none."""
    require_record(run)
    _, manifest = newest_complete(checkpoint_place(run))
    found = manifest.progress.get("best_step")
    if found is None:
        job, key = run.record.get("job"), "validation.keep_best"
        raise ConfigError(f"run {run.id}: this {job} run keeps no best checkpoint; train with {key}: true, or leave --best out")
    return int(found)


def without_head(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What of a fingerprint the model's own configuration says."""
    return {key: value for key, value in fingerprint.items() if key != HEAD}


def _adapted(model: Any, adapter: dict[str, Any]) -> Any:
    """The model with the layers that `model.json` says were put into it, their values still to be loaded."""
    if LORA not in adapter:
        return model
    from ropewalk.jobs.training.loop.lora import lora_adapter

    return lora_adapter(LoraConfig.model_validate(adapter[LORA]), 0, adapter.get(ADDED_TOKENS, ()))(model)


def _merged(model: Any, adapter: dict[str, Any]) -> Any:
    if LORA not in adapter:
        return model
    from ropewalk.jobs.training.loop.lora import merge_adapter

    return merge_adapter(model)


def first_weights(config: Any, weights: Weights | None, run: RunDir, head: Head = "causal_lm") -> Any:
    """The full model that the training of `run` begins with, on the CPU in fp32. A head that is new is drawn from the seed."""
    seed = int(run.record["config"].get("seed") or 0)
    torch.manual_seed(seed)
    model = _base_model(config, weights, run, head)
    if model.config.vocab_size != config.vocab_size:  # tokens were added: rows around the mean of the others, drawn by the seed
        torch.manual_seed(seed)
        model.resize_token_embeddings(config.vocab_size)
        model.config.eos_token_id = config.eos_token_id
    return share_layers(model, config)


def _base_model(config: Any, weights: Weights | None, run: RunDir, head: Head) -> Any:
    if weights is None:
        return bare_model(config, head)
    if weights.path is not None:
        place = run.path / weights.path  # a relative one lies in the run, and an absolute one where it says
        if head == "causal_lm":
            return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        return AutoModelForSequenceClassification.from_pretrained(place, config=_headed(config, head), dtype=torch.float32)
    assert weights.run is not None
    found = load_model(find_source_run(run, weights.run, "model.run"), weights.step)[0]
    if head == "causal_lm":
        return found
    model = bare_model(config, head)
    model.load_state_dict(found.state_dict(), strict=False)
    return model


def bare_model(config: Any, head: Head) -> Any:
    """The model of a configuration, in fp32, its values drawn at random."""
    kind = AutoModelForCausalLM if head == "causal_lm" else AutoModelForSequenceClassification
    return share_layers(kind.from_config(_headed(config, head), dtype=torch.float32), config)


def _headed(config: Any, head: Head) -> Any:
    if head == "reward":
        config.num_labels = 1
    return config


def empty_model(config: Any, head: Head = "causal_lm") -> Any:
    """The full model on the CPU in fp32, its weights undefined, its buffers as they must be."""
    with no_init_weights():
        model: Any = bare_model(config, head)
    model.tie_weights()  # otherwise a part of the initialization that was left out
    return model

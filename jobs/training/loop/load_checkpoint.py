"""Load the unsharded model of a run's checkpoint in one process, without a process group, a GPU or the job's configuration."""

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from ropewalk.cluster.errors import CheckpointError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.config import LoraConfig
from ropewalk.jobs.training.loop.grid import put_on_grid
from ropewalk.jobs.training.loop.initial_values import draw_parameters, record
from ropewalk.jobs.training.loop.model_config import config_from_fingerprint, model_fingerprint
from ropewalk.jobs.training.loop.model_record import Head, Weights, checkpoint_folder, find_source_run, require_record
from ropewalk.jobs.training.loop.sharing import share_layers, unshare_layers
from ropewalk.sharding.checkpoint import newest_complete
from ropewalk.sharding.floats import null_floats
from ropewalk.sharding.manifest import CheckpointManifest
from ropewalk.sharding.state import EMA, MODEL
from ropewalk.sharding.stored_tensors import StoredTensors

LORA = "lora"  # key of the adapter's options in a record
ADDED_TOKENS = "added_tokens"  # key of the tokens whose embeddings an adapter trains too
HEAD = "head"  # key of a fingerprint: the head, unless it predicts the next token


def load_model(run: RunDir, step: int | None = None, *, merge: bool = True, ema: bool = False) -> tuple[Any, CheckpointManifest]:
    """Return the full model of the newest complete checkpoint (or that of `step`), on the CPU in fp32, in evaluation mode.

    A low-rank adapter is merged unless `merge` is False; weights trained on a grid are rounded to it. With `ema` the trained
    weights are the moving average. Raises ConfigError for a run that trains no model or has no average, CheckpointError if
    there is no such checkpoint.
    """
    record = require_record(run)
    folder, manifest = newest_complete(checkpoint_folder(run), step)
    stored = StoredTensors(folder, manifest)
    tensors = stored.read_all(MODEL)
    if ema:
        means = stored.read_all(EMA)
        if not means:
            raise ConfigError(f"run {run.id} keeps no moving average of its weights; train with ema.decay set, or omit --ema")
        tensors |= means
    if record.adapter is None:
        model = empty_model(config_from_fingerprint(without_head(manifest.identity)), record.head)
        missing = {name for name, _ in model.named_parameters()} - tensors.keys()
    else:  # frozen weights come from the same origin as in training
        model = _insert_adapter(
            first_weights(config_from_fingerprint(record.fingerprint), record.weights, run, record.head), record.adapter
        )
        missing = tensors.keys() - model.state_dict().keys()
    if missing:
        raise CheckpointError(f"{folder.url}: does not fit the model: {', '.join(sorted(missing)[:3])}; choose an older step")
    model.load_state_dict(tensors, strict=False)  # a tied weight is stored once
    identity = model_fingerprint(model.config)
    assert record.adapter is not None or without_head(manifest.identity) in (identity, null_floats(identity))
    if merge and LORA in (record.adapter or {}):
        from ropewalk.jobs.training.loop.lora import merge_adapter

        model = merge_adapter(model)
    if record.grid is not None:
        put_on_grid(model, record.grid)
    return unshare_layers(model).eval(), manifest


def best_step(run: RunDir) -> int:
    """Return the step of the checkpoint with the best validation so far. Raises ConfigError if the run keeps none."""
    require_record(run)
    _, manifest = newest_complete(checkpoint_folder(run))
    step = manifest.progress.get("best_step")
    if step is None:
        job, key = run.record.get("job"), "validation.keep_best"
        raise ConfigError(f"run {run.id}: this {job} run keeps no best checkpoint; train with {key}: true, or omit --best")
    return int(step)


def without_head(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a fingerprint that is the model's own configuration."""
    return {key: value for key, value in fingerprint.items() if key != HEAD}


def _insert_adapter(model: Any, adapter: dict[str, Any]) -> Any:
    """Insert the adapter layers that `model.json` describes; their values are still to be loaded."""
    if LORA not in adapter:
        return model
    from ropewalk.jobs.training.loop.lora import lora_adapter

    return lora_adapter(LoraConfig.model_validate(adapter[LORA]), 0, adapter.get(ADDED_TOKENS, ()))(model)


def first_weights(config: Any, weights: Weights | None, run: RunDir, head: Head = "causal_lm") -> Any:
    """Return the full model that the training of `run` starts from, on the CPU in fp32. A new head is drawn from the seed."""
    seed = seed_of(run)
    torch.manual_seed(seed)
    model = _base_model(config, weights, run, head)
    if model.config.vocab_size != config.vocab_size:  # added tokens: rows drawn from the seed around the mean of the others
        torch.manual_seed(seed)
        model.resize_token_embeddings(config.vocab_size)
        model.config.eos_token_id = config.eos_token_id
    return share_layers(model, config)


def seed_of(run: RunDir) -> int:
    """Return the seed of a run's configuration."""
    return int(run.record["config"].get("seed") or 0)


def _base_model(config: Any, weights: Weights | None, run: RunDir, head: Head) -> Any:
    if weights is None:
        recording = record(skeleton(config, head))
        if recording is None:
            return bare_model(config, head)
        model = empty_model(config, head)
        draw_parameters(model, recording, seed_of(run))
        return model
    if weights.path is not None:
        directory = run.path / weights.path  # relative to the run, unless absolute
        if head == "causal_lm":
            return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False)
        return AutoModelForSequenceClassification.from_pretrained(
            directory, config=_set_head(config, head), dtype=torch.float32, trust_remote_code=False
        )
    assert weights.run is not None
    trained = load_model(find_source_run(run, weights.run, "model.run"), weights.step)[0]
    if head == "causal_lm":
        return trained
    model = bare_model(config, head)
    model.load_state_dict(trained.state_dict(), strict=False)
    return model


def bare_model(config: Any, head: Head) -> Any:
    """Build the model of a configuration in fp32, with random values."""
    return share_layers(_from_config(config, head), config)


def _from_config(config: Any, head: Head) -> Any:
    kind = AutoModelForCausalLM if head == "causal_lm" else AutoModelForSequenceClassification
    return kind.from_config(_set_head(config, head), dtype=torch.float32)


def _set_head(config: Any, head: Head) -> Any:
    if head == "reward":
        config.num_labels = 1
    return config


def skeleton(config: Any, head: Head) -> Any:
    """Build the full model with its parameters on the meta device and correct buffers."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model = _from_config(config, head)
    model.tie_weights()  # not above: there each assignment makes a parameter of its own
    return share_layers(model, config)


def empty_model(config: Any, head: Head = "causal_lm") -> Any:
    """Build the full model on the CPU in fp32 with undefined weights and correct buffers."""
    with no_init_weights():
        model: Any = bare_model(config, head)
    model.tie_weights()  # skipped with the rest of the initialization
    return model

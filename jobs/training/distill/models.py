"""Models of a distillation: the teacher, fixed when the run first starts, and the student, named or pruned from the teacher."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.jobs.runs.models.find_model import find_model
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.loop.architecture.bare_model import skeleton
from ropewalk.jobs.training.loop.architecture.model_config import check_fit, config_from_fingerprint, model_fingerprint
from ropewalk.jobs.training.loop.architecture.model_record import Weights, checkpoint_folder, open_weights, require_record
from ropewalk.jobs.training.loop.architecture.sharing import plain_config, set_groups, shared_groups
from ropewalk.jobs.training.loop.model import ADAPTER, ModelPlan
from ropewalk.jobs.training.loop.recipe import pin_weights
from ropewalk.jobs.training.loop.weights.on_main import on_main
from ropewalk.jobs.training.loop.weights.run_weights import UnsharedWeights, first_weights, without_head
from ropewalk.jobs.training.loop.weights.write_weights import write_model
from ropewalk.jobs.training.pruning.activations import calibration_batches, collect_on_ranks
from ropewalk.jobs.training.pruning.architecture import Shape
from ropewalk.jobs.training.pruning.config import PruneConfig
from ropewalk.jobs.training.pruning.student import prune_weights
from ropewalk.sharding.checkpoints.stored_tensors import newest_complete
from ropewalk.sharding.group import Group

TEACHER_RECORD = "teacher.json"  # in the run: later attempts use the same step
FOLDER = "student"  # in the run: the student before training
PRUNE_RECORD = "prune.json"


def teacher_plan(context: JobContext, config: DistillConfig, group: Group, tokenizer: TokenizerRecord) -> ModelPlan:
    """Plan the teacher, the same in every attempt of the run. Raises ConfigError if it does not match the data."""

    def settle() -> dict[str, Any]:
        path = context.run.path / TEACHER_RECORD
        record = read_json(path)
        if not record:
            record = _find_teacher(context, config, tokenizer)
            context.fence.check()
            write_json(path, record)
        return record

    record = on_main(group, settle)
    config_of_teacher = config_from_fingerprint(record["fingerprint"])
    check_fit(config_of_teacher, tokenizer.vocabulary, config.seq_len)
    weights = Weights.model_validate(record["weights"])
    return ModelPlan(config=config_of_teacher, seq_len=config.seq_len, weights=weights)


def _find_teacher(context: JobContext, config: DistillConfig, tokenizer: TokenizerRecord) -> dict[str, Any]:
    target = find_model(config.teacher, context.run.path.parent)
    if not isinstance(target, RunDir):
        return {
            "fingerprint": model_fingerprint(AutoConfig.from_pretrained(target, trust_remote_code=False)),
            "weights": {"path": str(target)},
        }
    record = require_record(target)
    if record.head != "causal_lm":
        raise ConfigError(f"teacher: {target.id} trained a reward model, which predicts no tokens; name another run")
    if record.tokenizer.hash != tokenizer.hash:
        raise ConfigError(
            f"teacher: {target.id} was trained with the tokenizer {record.tokenizer.name} ({record.tokenizer.hash}), the data was"
            f" made with {tokenizer.name} ({tokenizer.hash}); preprocess the data with tokenizer.path={target.tokenizer}"
        )
    _, manifest = newest_complete(checkpoint_folder(target))
    weights = Weights(run=target.id if target.path.parent == context.run.path.parent else str(target.path), step=manifest.step)
    pin_weights(weights, context.run)
    fingerprint = {key: value for key, value in without_head(manifest.identity).items() if key != ADAPTER}
    return {"fingerprint": fingerprint, "weights": weights.model_dump(exclude_none=True)}


def student_plan(
    context: JobContext, config: DistillConfig, group: Group, teacher: ModelPlan, tokenizer: TokenizerRecord
) -> ModelPlan:
    """Plan the student, the same in every attempt of the run. Raises ConfigError."""
    if config.student.prune is None:
        plan = ModelPlan.of(config.student.model(), context.run, tokenizer=tokenizer, seq_len=config.seq_len)
    else:
        folder = _prune_once(context, config, config.student.prune, group, teacher)
        fingerprint = on_main(group, lambda: model_fingerprint(AutoConfig.from_pretrained(folder, trust_remote_code=False)))
        plan = replace(teacher, config=config_from_fingerprint(fingerprint), weights=Weights(path=FOLDER), origin=teacher.weights)
    check_fit(plan.config, tokenizer.vocabulary, config.seq_len)
    if config.share is not None:
        set_groups(plan.config, config.share.groups, config.share.values)
    return plan


def _prune_once(context: JobContext, config: DistillConfig, keys: PruneConfig, group: Group, teacher: ModelPlan) -> Path:
    """Write the pruned student into the run, unless an earlier attempt did; returns its folder. No rank holds the teacher."""
    folder = context.run.path / FOLDER
    if on_main(group, folder.is_dir):
        return folder
    Shape.of(teacher.config).cut(keys)  # fail early
    groups = shared_groups(teacher.config)
    reader = first_weights(teacher.config, teacher.weights, context.run)
    whole = skeleton(plain_config(teacher.config))
    reader = UnsharedWeights(reader, groups) if groups else reader
    activations = collect_on_ranks(whole.config, reader, group, _text(config, keys)) if keys.needs_text else None

    def write() -> None:
        pruned = prune_weights(whole, reader, keys, activations)
        context.fence.check()
        partial = folder.with_name(f".{FOLDER}.{context.attempt}-{context.group}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_model(pruned.model, pruned.reader, partial, torch.float32)
        open_weights(partial)
        write_json(partial / PRUNE_RECORD, pruned.record)
        partial.rename(folder)  # atomic: complete or absent
        before, after = (pruned.record[key]["parameters"] for key in ("before", "after"))
        context.run.event("pruned", parameters_before=before, parameters_after=after, layers=pruned.record["layers"])

    on_main(group, write)
    return folder


def _text(config: DistillConfig, keys: PruneConfig) -> Any:
    calibration = keys.calibration
    return calibration_batches(
        calibration.data or config.data,
        seq_len=calibration.seq_len or config.seq_len,
        sequences=calibration.sequences,
        seed=calibration.seed,
        micro_batch=calibration.micro_batch,
    )

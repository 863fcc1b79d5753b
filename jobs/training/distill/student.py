"""The student: a model that is named, or one that rank 0 prunes from the teacher, once per run."""

import shutil
from dataclasses import replace
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.loop.load_checkpoint import first_weights
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.model_config import check_fit, config_from_fingerprint, model_fingerprint
from ropewalk.jobs.training.loop.model_record import Weights
from ropewalk.jobs.training.loop.on_main import on_main
from ropewalk.jobs.training.loop.sharing import set_groups
from ropewalk.jobs.training.pruning.activations import calibration_batches
from ropewalk.jobs.training.pruning.config import PruneConfig
from ropewalk.jobs.training.pruning.student import prune
from ropewalk.sharding.group import Group

FOLDER = "student"  # in the run: the student before training
RECORD = "prune.json"


def student_plan(
    context: JobContext, config: DistillConfig, group: Group, teacher: ModelPlan, tokenizer: TokenizerRecord
) -> ModelPlan:
    """Plan the student, the same in every attempt of the run. Raises ConfigError."""
    if config.student.prune is None:
        plan = ModelPlan.of(config.student.model(), context.run, tokenizer=tokenizer, seq_len=config.seq_len)
    else:
        plan = _cut_plan(context, config, group, teacher)
    check_fit(plan.config, tokenizer.vocabulary, config.seq_len)
    if config.share is not None:
        set_groups(plan.config, config.share.groups, config.share.values)
    return plan


def _cut_plan(context: JobContext, config: DistillConfig, group: Group, teacher: ModelPlan) -> ModelPlan:
    fingerprint = on_main(group, lambda: _cut_once(context, config, teacher))
    return replace(teacher, config=config_from_fingerprint(fingerprint), weights=Weights(path=FOLDER), origin=teacher.weights)


def _cut_once(context: JobContext, config: DistillConfig, teacher: ModelPlan) -> dict[str, Any]:
    """Write the pruned student into the run, unless an earlier attempt did; returns its fingerprint."""
    from transformers import AutoConfig

    folder = context.run.path / FOLDER
    if not folder.is_dir():
        assert config.student.prune is not None
        model = first_weights(teacher.config, teacher.weights, context.run)
        pruned = prune(model.eval(), config.student.prune, _text(config, config.student.prune))
        context.fence.check()
        partial = folder.with_name(f".{FOLDER}.{context.attempt}-{context.group}")
        shutil.rmtree(partial, ignore_errors=True)
        pruned.model.save_pretrained(partial)
        write_json(partial / RECORD, pruned.record)
        partial.rename(folder)  # atomic: complete or absent
        before, after = (pruned.record[key]["parameters"] for key in ("before", "after"))
        context.run.event("pruned", parameters_before=before, parameters_after=after, layers=pruned.record["layers"])
    return model_fingerprint(AutoConfig.from_pretrained(folder))


def _text(config: DistillConfig, keys: PruneConfig) -> Any:
    calibration = keys.calibration
    return calibration_batches(
        calibration.data or config.data,
        seq_len=calibration.seq_len or config.seq_len,
        sequences=calibration.sequences,
        seed=calibration.seed,
        micro_batch=calibration.micro_batch,
    )

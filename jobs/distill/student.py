"""Who learns: a model that is named, or one that rank 0 cuts out of the teacher, once, into the run."""

import shutil
from dataclasses import replace
from typing import Any

from cluster.run.context import JobContext
from cluster.run.files import write_json
from datapipe.manifest import TokenizerRecord
from jobs.distill.config import DistillConfig
from jobs.pruning.calibration import calibration_batches
from jobs.pruning.config import PruneConfig
from jobs.pruning.student import prune
from jobs.training.load_checkpoint import first_weights
from jobs.training.model import ModelPlan
from jobs.training.model_config import check_fit, config_from_fingerprint, model_fingerprint
from jobs.training.model_record import Weights
from jobs.training.on_main import on_main
from jobs.training.sharing import set_groups
from sharding.group import Group

FOLDER = "student"  # in the run: the student before it has learnt anything
RECORD = "prune.json"


def student_plan(
    context: JobContext, config: DistillConfig, group: Group, teacher: ModelPlan, tokenizer: TokenizerRecord
) -> ModelPlan:
    """The student, the same in every attempt of the run. Raises ConfigError."""
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
    """Write the student into the run, unless an earlier attempt did; returns its fingerprint."""
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
        partial.rename(folder)  # complete, or not there
        before, after = (pruned.record[key]["parameters"] for key in ("before", "after"))
        context.run.event("pruned", parameters_before=before, parameters_after=after, layers=pruned.record["layers"])
    return model_fingerprint(AutoConfig.from_pretrained(folder))


def _text(config: DistillConfig, keys: PruneConfig) -> Any:
    wanted = keys.calibration
    return calibration_batches(
        wanted.data or config.data,
        seq_len=wanted.seq_len or config.seq_len,
        sequences=wanted.sequences,
        seed=wanted.seed,
        micro_batch=wanted.micro_batch,
    )

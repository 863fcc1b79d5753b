"""The teacher: the model that a run names, fixed when it starts for the first time."""

from typing import Any

from transformers import AutoConfig

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.jobs.runs.models.find_model import find_model
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.loop.load_checkpoint import without_head
from ropewalk.jobs.training.loop.model import ADAPTER, ModelPlan
from ropewalk.jobs.training.loop.model_config import check_fit, config_from_fingerprint, model_fingerprint
from ropewalk.jobs.training.loop.model_record import Weights, checkpoint_folder, require_record
from ropewalk.jobs.training.loop.on_main import on_main
from ropewalk.jobs.training.loop.start import pin_weights
from ropewalk.sharding.checkpoint import newest_complete
from ropewalk.sharding.group import Group

RECORD = "teacher.json"  # in the run: later attempts use the same step


def teacher_plan(context: JobContext, config: DistillConfig, group: Group, tokenizer: TokenizerRecord) -> ModelPlan:
    """Plan the teacher, the same in every attempt of the run. Raises ConfigError if it does not match the data."""

    def settle() -> dict[str, Any]:
        path = context.run.path / RECORD
        record = read_json(path)
        if not record:
            record = _find(context, config, tokenizer)
            context.fence.check()
            write_json(path, record)
        return record

    record = on_main(group, settle)
    config_of_teacher = config_from_fingerprint(record["fingerprint"])
    check_fit(config_of_teacher, tokenizer.vocabulary, config.seq_len)
    weights = Weights.model_validate(record["weights"])
    return ModelPlan(config=config_of_teacher, seq_len=config.seq_len, weights=weights)


def _find(context: JobContext, config: DistillConfig, tokenizer: TokenizerRecord) -> dict[str, Any]:
    target = find_model(config.teacher, context.run.path.parent)
    if not isinstance(target, RunDir):
        return {"fingerprint": model_fingerprint(AutoConfig.from_pretrained(target)), "weights": {"path": str(target)}}
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

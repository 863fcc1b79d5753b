"""Who teaches: the model that a run names, settled when it starts for the first time."""

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
from ropewalk.jobs.training.loop.model_record import Weights, checkpoint_place, require_record
from ropewalk.jobs.training.loop.on_main import on_main
from ropewalk.jobs.training.loop.start import pin_weights
from ropewalk.sharding.checkpoint import newest_complete
from ropewalk.sharding.group import Group

RECORD = "teacher.json"  # in the run: the teacher's step does not change with the attempt


def teacher_plan(context: JobContext, config: DistillConfig, group: Group, tokenizer: TokenizerRecord) -> ModelPlan:
    """The teacher, the same in every attempt of the run. Raises ConfigError for one that does not fit the data."""

    def settle() -> dict[str, Any]:
        place = context.run.path / RECORD
        known = read_json(place)
        if not known:
            known = _found(context, config, tokenizer)
            context.fence.check()
            write_json(place, known)
        return known

    known = on_main(group, settle)
    found = config_from_fingerprint(known["fingerprint"])
    check_fit(found, tokenizer.vocabulary, config.seq_len)
    weights = Weights.model_validate(known["weights"])
    return ModelPlan(config=found, seq_len=config.seq_len, weights=weights)


def _found(context: JobContext, config: DistillConfig, tokenizer: TokenizerRecord) -> dict[str, Any]:
    found = find_model(config.teacher, context.run.path.parent)
    if not isinstance(found, RunDir):
        return {"fingerprint": model_fingerprint(AutoConfig.from_pretrained(found)), "weights": {"path": str(found)}}
    record = require_record(found)
    if record.head != "causal_lm":
        raise ConfigError(f"teacher: {found.id} trained a reward model, which scores and predicts no token; name another run")
    if record.tokenizer.hash != tokenizer.hash:
        raise ConfigError(
            f"teacher: {found.id} was trained with the tokenizer {record.tokenizer.name} ({record.tokenizer.hash}), the data was"
            f" made with {tokenizer.name} ({tokenizer.hash}); preprocess the data with tokenizer.path={found.tokenizer}"
        )
    _, manifest = newest_complete(checkpoint_place(found))
    weights = Weights(run=found.id if found.path.parent == context.run.path.parent else str(found.path), step=manifest.step)
    pin_weights(weights, context.run)
    fingerprint = {key: value for key, value in without_head(manifest.identity).items() if key != ADAPTER}
    return {"fingerprint": fingerprint, "weights": weights.model_dump(exclude_none=True)}

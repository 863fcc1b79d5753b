"""Evaluate a model on tasks: rank 0 asks as lm-eval has it, all ranks answer."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.evaluation.evaluate.team import Team
from ropewalk.jobs.evaluation.tasks.load import load_tasks
from ropewalk.jobs.evaluation.tasks.scoring import TaskScores, evaluate_tasks, task_scores
from ropewalk.jobs.inference.scoring.generate import Writer
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model
from ropewalk.jobs.inference.scoring.scorer import Scorer
from ropewalk.jobs.runs.models.evaluations import FOLDER
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

_MODEL = "model.json"  # which checkpoint is evaluated, settled by the first attempt


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What rank 0 knows after the tasks."""

    tasks: Mapping[str, TaskScores]
    model_step: int | None
    near_ties: int  # items of which a decision was made again exactly
    truncated: Mapping[str, int]  # by task: requests that lost the beginning of their text

    def results(self) -> dict[str, Any]:
        """What the job returns of them."""
        return {
            "scores": {
                name: {metric: score.plain() for metric, score in task.scores.items()} for name, task in self.tasks.items()
            },
            "model_step": self.model_step,
            "near_ties": self.near_ties,
            "truncated": dict(self.truncated),
        }


def run_tasks(context: JobContext, config: EvaluateConfig, group: Group) -> Evaluated | None:
    """Evaluate the tasks; None on ranks other than the first. Raises ConfigError, DataError, StopRequested."""
    tasks = load_tasks(config) if group.is_main else {}  # before the model: a mistake is told at once
    group.barrier()
    opened = _open(context, config, group)
    if config.chat_template and getattr(opened.tokenizer, "chat_template", None) is None:
        raise ConfigError(f"chat_template: the tokenizer of {opened.name} has none; leave the key out, or give the model one")
    scorer = Scorer(opened, batch_size=config.batch_size, batch_tokens=config.batch_tokens)
    team = Team(context, group, scorer, Writer(opened, config.batch_size))
    if not group.is_main:
        team.serve()
        return None
    from ropewalk.jobs.evaluation.evaluate.lm_eval_model import RopewalkModel

    model = RopewalkModel(opened, team, config.seed)
    turns, system = config.fewshot_as_turns, config.system
    raw = evaluate_tasks(model, tasks, limit=config.limit, chat=config.chat_template, turns=turns, system=system)
    team.dismiss()
    found = {name: task_scores(name, task, raw, config.seed) for name, task in tasks.items()}
    for name, task in found.items():
        for line in task.items:
            line["near_tie"] = (name, line["item"]) in model.near_ties
    return Evaluated(tasks=found, model_step=opened.step, near_ties=len(model.near_ties), truncated=model.truncated)


def _open(context: JobContext, config: EvaluateConfig, group: Group) -> OpenModel:
    """The model on every rank; all attempts evaluate the same checkpoint of it, whatever its run has saved since."""
    folder = context.run.path / FOLDER
    settled = group.broadcast_object([read_json(folder / _MODEL)] if group.is_main else None)[0]
    dtype = getattr(torch, config.dtype)
    step = settled["step"] if settled else None
    opened = open_model(config.model, context.run.path.parent, device=group.device, dtype=dtype, step=step)
    steps = group.all_gather_object(opened.step)
    if any(other != steps[0] for other in steps):  # another one was saved while they opened it
        opened = open_model(config.model, context.run.path.parent, device=group.device, dtype=dtype, step=steps[0])
    if group.is_main and not settled:
        context.fence.check()
        folder.mkdir(exist_ok=True)
        write_json(folder / _MODEL, {"model": opened.name, "step": opened.step})
    return opened

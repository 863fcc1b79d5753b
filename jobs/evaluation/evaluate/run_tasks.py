"""Evaluate a model on tasks: rank 0 runs lm-eval, all ranks answer its requests."""

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
from ropewalk.jobs.inference.scoring.open_on_ranks import RankModel, find_on_ranks, open_on_ranks
from ropewalk.jobs.inference.scoring.scorer import Scorer
from ropewalk.jobs.runs.models.evaluations import FOLDER
from ropewalk.sharding.group import Group

log = logging.getLogger(__name__)

_MODEL = "model.json"  # the evaluated checkpoint, recorded by the first attempt


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Results of the tasks on rank 0."""

    tasks: Mapping[str, TaskScores]
    model_step: int | None
    near_ties: int  # items whose decision was recomputed exactly
    truncated: Mapping[str, int]  # by task: requests that lost the beginning of their text

    def results(self) -> dict[str, Any]:
        """Return the tasks' part of the job's results."""
        return {
            "scores": {
                name: {metric: score.plain() for metric, score in task.scores.items()} for name, task in self.tasks.items()
            },
            "model_step": self.model_step,
            "near_ties": self.near_ties,
            "truncated": dict(self.truncated),
        }


def run_tasks(context: JobContext, config: EvaluateConfig, group: Group) -> Evaluated | None:
    """Evaluate the tasks; return None on ranks other than the first. Raises ConfigError, DataError, StopRequested."""
    tasks = load_tasks(config) if group.is_main else {}  # before the model, so that mistakes are reported early
    group.barrier()
    rank_model = _open(context, config, group)
    opened = rank_model.opened
    if config.chat_template and getattr(opened.tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"chat_template: the tokenizer of {opened.name} has no chat template; leave the key out, or add one to the model"
        )
    scorer = Scorer(opened, batch_size=config.batch_size, batch_tokens=config.batch_tokens)
    team = Team(context, group, scorer, Writer(opened, config.batch_size), rank_model.settle)
    if not group.is_main:
        team.serve()
        return None
    from ropewalk.jobs.evaluation.evaluate.lm_eval_model import RopewalkModel

    model = RopewalkModel(opened, team, config.seed)
    turns, system = config.fewshot_as_turns, config.system
    raw = evaluate_tasks(model, tasks, limit=config.limit, chat=config.chat_template, turns=turns, system=system)
    team.dismiss()
    scores_of_task = {name: task_scores(name, task, raw, config.seed) for name, task in tasks.items()}
    for name, task in scores_of_task.items():
        for line in task.items:
            line["near_tie"] = (name, line["item"]) in model.near_ties
    return Evaluated(tasks=scores_of_task, model_step=opened.step, near_ties=len(model.near_ties), truncated=model.truncated)


def _open(context: JobContext, config: EvaluateConfig, group: Group) -> RankModel:
    """Open the model on all ranks; all attempts use the same checkpoint, whatever its run has saved since."""
    folder = context.run.path / FOLDER
    recorded = group.broadcast_object([read_json(folder / _MODEL)] if group.is_main else None)[0]
    stored = find_on_ranks(config.model, context.run.path.parent, group, recorded["step"] if recorded else None)
    opened = open_on_ranks(stored, group, getattr(torch, config.dtype), config.shard)
    if group.is_main and not recorded:
        context.fence.check()
        folder.mkdir(exist_ok=True)
        write_json(folder / _MODEL, {"model": stored.name, "step": stored.step})
    return opened

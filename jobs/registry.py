"""The jobs there are, by name: listing them imports none of them."""

import difflib
from importlib import import_module
from typing import Any

from cluster.config import JobConfig
from cluster.errors import ConfigError
from cluster.spec import Engine, JobSpec

GROUP = "ropewalk.jobs"  # entry points that are a JobSpec: jobs that others add

_TRAINING = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",  # of the presets; every other model needs most of what it imports
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint",
    "jobs.training.recipe",
)
_VALIDATION = ("validation/loss", "validation/bits_per_byte")

JOBS: dict[str, JobSpec] = {
    spec.name: spec
    for spec in (
        JobSpec(
            name="preprocess",
            summary="Turn raw documents into a sharded Arrow data set of tokens.",
            config="jobs.preprocess.config:PreprocessConfig",
            entry="jobs.preprocess.job:main",
            engine=Engine.RAY,
        ),
        JobSpec(
            name="pretrain",
            summary="Train a language model with FSDP on a data set.",
            config="jobs.pretrain.config:PretrainConfig",
            entry="jobs.pretrain.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "jobs.pretrain.job"),
            reports=("train/loss", "train/gradient_norm", "train/tokens_per_second", *_VALIDATION),
        ),
        JobSpec(
            name="align",
            summary="Align a language model with preferences or rewards: DPO, IPO, KTO, ORPO, SimPO, GRPO.",
            config="jobs.align.config:AlignConfig",
            entry="jobs.align.job:main",
            engine=Engine.RANKS,
            preload=(
                *(*_TRAINING, "jobs.align.job", "jobs.align.preferences.recipe"),
                *("jobs.align.reward.recipe", "jobs.align.rollouts.recipe"),
            ),
            reports=(
                *("train/loss", "train/gradient_norm", "train/tokens_per_second", "validation/loss"),
                *("train/reward_accuracy", "train/reward_margin", "validation/reward_accuracy", "validation/reward_margin"),
                "train/reward",
            ),
        ),
        JobSpec(
            name="finetune",
            summary="Teach a language model to answer, on conversations: all weights or a low-rank adapter.",
            config="jobs.finetune.config:FinetuneConfig",
            entry="jobs.finetune.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "jobs.finetune.job"),
            reports=("train/loss", "train/gradient_norm", "train/tokens_per_second", *_VALIDATION, "validation/gap"),
        ),
        JobSpec(
            name="answers",
            summary="Ask a served teacher, and keep its answers as conversations that finetune learns from.",
            config="jobs.distill.answers.config:AnswersConfig",
            entry="jobs.distill.answers.job:main",
            engine=Engine.PROCESS,
        ),
        JobSpec(
            name="distill",
            summary="Teach a smaller model, a preset or cut out of the teacher, what a larger one knows.",
            config="jobs.distill.config:DistillConfig",
            entry="jobs.distill.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "jobs.distill.job"),
            view="jobs.distill.view:DistillView",
            reports=("train/loss", "train/divergence", "train/gradient_norm", "train/tokens_per_second", *_VALIDATION),
        ),
        JobSpec(
            name="evaluate",
            summary="Measure a model: bits per byte on held-out text, tasks, sample generations; and hold it to a gate.",
            config="jobs.evaluate.config:EvaluateConfig",
            entry="jobs.evaluate.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "jobs.evaluate.job"),
            view="jobs.evaluate.view:EvaluateView",
        ),
        JobSpec(
            name="audit",
            summary="Audit a model before it is trusted: stereotypes, memory, personal data, contamination; with a gate.",
            config="jobs.audit.config:AuditConfig",
            entry="jobs.audit.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "jobs.audit.job"),
            view="jobs.audit.view:AuditView",
        ),
        JobSpec(
            name="compress",
            summary="Prune and quantize a model, and measure each variant in the engine that serves it; with a gate.",
            config="jobs.compress.config:CompressConfig",
            entry="jobs.compress.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "jobs.compress.job"),
            view="jobs.compress.view:CompressView",
        ),
        JobSpec(
            name="collect",
            summary="Make conversations and preferences of what a serving run has captured.",
            config="jobs.collect.config:CollectConfig",
            entry="jobs.collect.job:main",
            engine=Engine.PROCESS,
        ),
        JobSpec(
            name="refresh",
            summary="Watch a serving run: learn from feedback, judge, canary and promote; each step is a run.",
            config="jobs.refresh.config:RefreshConfig",
            entry="jobs.refresh.job:main",
            engine=Engine.PROCESS,
            view="jobs.refresh.view:RefreshView",
        ),
        JobSpec(
            name="serve",
            summary="Answer requests with a model, through OpenAI's API: replicas, updates without a lost answer.",
            config="jobs.serve.config:ServeConfig",
            entry="jobs.serve.job:main",
            engine=Engine.RAY,
            reports=("serve/requests_per_second", "serve/replicas", "serve/requests", "serve/errors"),
            view="jobs.serve.view:ServeView",
        ),
        JobSpec(
            name="command",
            summary="Run any program: as ranks, one a node, or once.",
            config="jobs.command.config:CommandConfig",
            entry="jobs.command.job:main",
            engine=Engine.RANKS,
            preload=("jobs.command.job",),
        ),
        JobSpec(
            name="function",
            summary="Call a Python function; `ropewalk.submit` in a program or a notebook writes it.",
            config="jobs.function.config:FunctionConfig",
            entry="jobs.function.job:main",
            engine=Engine.PROCESS,
            preload=("jobs.function.job",),
        ),
        JobSpec(
            name="sweep",
            summary="Search for the best configuration of another job; each trial is a run.",
            config="jobs.sweep.config:SweepConfig",
            entry="jobs.sweep.job:main",
            engine=Engine.PROCESS,
            view="jobs.sweep.view:SweepView",
        ),
        JobSpec(
            name="pipeline",
            summary="Run several jobs, some of which need others; each is a run.",
            config="jobs.pipeline.config:PipelineConfig",
            entry="jobs.pipeline.job:main",
            engine=Engine.PROCESS,
            view="jobs.pipeline.view:PipelineView",
        ),
    )
}


def find_job(name: str) -> JobSpec:
    """The job that a user names: of this program, or an entry point of the group. Raises ConfigError with the nearest name."""
    if name in JOBS:
        return JOBS[name]
    from importlib.metadata import entry_points  # it looks through every package that is installed

    for point in entry_points(group=GROUP, name=name):
        found: JobSpec = point.load()
        return found
    near = difflib.get_close_matches(name, JOBS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown job {name!r}{hint}; jobs: {', '.join(JOBS)}")


def config_of(spec: JobSpec) -> type[JobConfig]:
    """The job's configuration class; imports that light module alone."""
    kind: type[JobConfig] = _imported(spec.config)
    return kind


def view_class(job: str) -> Any:
    """The class by which a job's runs are shown (a `jobs.runs.view.RunView`); the default where the job is not installed here."""
    try:
        return _imported(find_job(job).view)
    except ConfigError:
        return _imported(JobSpec.view)


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)

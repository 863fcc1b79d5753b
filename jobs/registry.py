"""Table of jobs by name. Listing them imports none of them."""

import difflib
from importlib import import_module
from typing import Any

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.project import user_object, wrong_kind
from ropewalk.cluster.spec import Engine, JobSpec

GROUP = "ropewalk.jobs"  # entry points of plug-in jobs, each a JobSpec

_TRAINING = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",  # the presets; other models share most of its imports
    "torch.distributed.fsdp",
    "ropewalk.jobs.training.loop.recipe",
)
_VALIDATION = ("validation/loss", "validation/bits_per_byte")

_MODEL_FILES = {
    "model.json": "configuration, tokenizer and base of the trained model",
    "tokenizer": "its tokenizer, as a Hugging Face directory",
}
_JUDGED_FILES = {"judged_weights.json": "hash of the weights that the first attempt began to judge"}

JOBS: dict[str, JobSpec] = {
    spec.name: spec
    for spec in (
        JobSpec(
            name="preprocess",
            summary="Turn raw documents into a sharded Arrow data set of tokens.",
            config="ropewalk.jobs.preprocess.config:PreprocessConfig",
            entry="ropewalk.jobs.preprocess.job:main",
            engine=Engine.RAY,
            view="ropewalk.jobs.preprocess.view:PreprocessView",
        ),
        JobSpec(
            name="pretrain",
            summary="Train a language model with FSDP on a data set.",
            config="ropewalk.jobs.training.pretrain.config:PretrainConfig",
            entry="ropewalk.jobs.training.pretrain.job:main",
            engine=Engine.RANKS,
            view="ropewalk.jobs.training.loop.view:TokensView",
            preload=(*_TRAINING, "ropewalk.jobs.training.pretrain.job"),
            reports=("train/loss", "train/gradient_norm", "train/tokens_per_second", *_VALIDATION),
            files=_MODEL_FILES,
        ),
        JobSpec(
            name="align",
            summary="Align a language model with preferences or rewards: DPO, IPO, KTO, ORPO, SimPO, GRPO.",
            config="ropewalk.jobs.training.align.config:AlignConfig",
            entry="ropewalk.jobs.training.align.job:main",
            engine=Engine.RANKS,
            view="ropewalk.jobs.training.loop.view:TrainingView",
            preload=(
                *(*_TRAINING, "ropewalk.jobs.training.align.job", "ropewalk.jobs.training.align.preferences.recipe"),
                *("ropewalk.jobs.training.align.reward.recipe", "ropewalk.jobs.training.align.grpo.recipe"),
            ),
            reports=(
                *("train/loss", "train/gradient_norm", "train/tokens_per_second", "validation/loss"),
                *("train/reward_accuracy", "train/reward_margin", "validation/reward_accuracy", "validation/reward_margin"),
                "train/reward",
            ),
            files={
                **_MODEL_FILES,
                "samples.html": "samples that are trained on, by what the loss counts",
                "pairs": "prepared preferences: Arrow files of token ids",
                "data.json": "data set that was prepared from prompts: {path, hash}",
                "rollouts": "GRPO: generated answers with their rewards; each is used once",
            },
        ),
        JobSpec(
            name="finetune",
            summary="Finetune a language model on conversations: all weights or a low-rank adapter.",
            config="ropewalk.jobs.training.finetune.config:FinetuneConfig",
            entry="ropewalk.jobs.training.finetune.job:main",
            engine=Engine.RANKS,
            view="ropewalk.jobs.training.loop.view:TrainingView",
            preload=(*_TRAINING, "ropewalk.jobs.training.finetune.job"),
            reports=("train/loss", "train/gradient_norm", "train/tokens_per_second", *_VALIDATION, "validation/gap"),
            files={
                **_MODEL_FILES,
                "samples.html": "conversations that are trained on, by what the loss counts",
                "data.json": "data set that was prepared from the conversations: {path, hash}",
            },
        ),
        JobSpec(
            name="answers",
            summary="Collect answers of a served teacher model as conversations for finetune.",
            config="ropewalk.jobs.training.distill.answers.config:AnswersConfig",
            entry="ropewalk.jobs.training.distill.answers.job:main",
            engine=Engine.PROCESS,
            view="ropewalk.jobs.training.distill.answers.view:AnswersView",
            files={"ledger": "answers of the teacher so far"},
        ),
        JobSpec(
            name="distill",
            summary="Train a smaller model (a preset, or pruned from the teacher) on a teacher's predictions.",
            config="ropewalk.jobs.training.distill.config:DistillConfig",
            entry="ropewalk.jobs.training.distill.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "ropewalk.jobs.training.distill.job"),
            view="ropewalk.jobs.training.distill.view:DistillView",
            reports=("train/loss", "train/divergence", "train/gradient_norm", "train/tokens_per_second", *_VALIDATION),
            files={
                **_MODEL_FILES,
                "teacher.json": "checkpoint of the teacher, the same in every attempt",
                "student": "the student before training",
                "distill": "comparison with teacher and baseline: `report.html`, `report.json`",
                "baseline.lock": "lock of the runs of the baseline",
            },
        ),
        JobSpec(
            name="evaluate",
            summary="Evaluate a model: bits per byte on held-out text, tasks, sample generations; with a gate.",
            config="ropewalk.jobs.evaluation.evaluate.config:EvaluateConfig",
            entry="ropewalk.jobs.evaluation.evaluate.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "ropewalk.jobs.evaluation.evaluate.job"),
            view="ropewalk.jobs.evaluation.evaluate.view:EvaluateView",
            files={
                **_JUDGED_FILES,
                "ledger": "scores of items so far",
                "evaluation": "scores: `report.html`, `report.json`; one line per item in `items.jsonl`; generations",
            },
        ),
        JobSpec(
            name="audit",
            summary="Audit a model: stereotypes, memorization, personal data, contamination; with a gate.",
            config="ropewalk.jobs.evaluation.audit.config:AuditConfig",
            entry="ropewalk.jobs.evaluation.audit.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "ropewalk.jobs.evaluation.audit.job"),
            view="ropewalk.jobs.evaluation.audit.view:AuditView",
            files={
                **_JUDGED_FILES,
                "audit": "findings: `report.html`, `report.json`; one line per item in `items.jsonl`",
                "ledger": "answers of the model so far",
            },
        ),
        JobSpec(
            name="compress",
            summary="Prune and quantize a model, and measure each variant in the engine that serves it; with a gate.",
            config="ropewalk.jobs.models.compress.config:CompressConfig",
            entry="ropewalk.jobs.models.compress.job:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "ropewalk.jobs.models.compress.job"),
            view="ropewalk.jobs.models.compress.view:CompressView",
            files={
                **_JUDGED_FILES,
                "ledger": "scores of items so far",
                "compress": "table of the variants: `report.html`, `report.json`",
                "variants": "the compressed models",
                "recovery": "training after pruning, of variants with `recover`",
            },
        ),
        JobSpec(
            name="collect",
            summary="Turn a serving run's captured traffic into conversations and preference pairs.",
            config="ropewalk.jobs.serving.collect.config:CollectConfig",
            entry="ropewalk.jobs.serving.collect.job:main",
            engine=Engine.PROCESS,
            view="ropewalk.jobs.serving.collect.view:CollectView",
            files={
                "data": "conversations.jsonl, pairs.jsonl, manifest.json",
                "until.json": "end of the period that is collected, the same in every attempt",
            },
        ),
        JobSpec(
            name="refresh",
            summary="Retrain from a serving run's feedback, gate, canary and promote; each step is a run.",
            config="ropewalk.jobs.serving.refresh.config:RefreshConfig",
            entry="ropewalk.jobs.serving.refresh.job:main",
            engine=Engine.PROCESS,
            view="ropewalk.jobs.serving.refresh.view:RefreshView",
            files={
                "rounds": "one folder per round, with its decisions",
                "report.html": "all rounds, for people; the same in `report.json`",
                "report.json": "see `report.html`",
                "clusters.yaml": "profiles of the clusters of driver and steps",
            },
        ),
        JobSpec(
            name="serve",
            summary="Serve a model through the OpenAI API: replicas, updates without failed requests.",
            config="ropewalk.jobs.serving.serve.config:ServeConfig",
            entry="ropewalk.jobs.serving.serve.job:main",
            engine=Engine.RAY,
            reports=("serve/requests_per_second", "serve/replicas", "serve/requests", "serve/errors"),
            view="ropewalk.jobs.serving.serve.view:ServeView",
            files={
                "serving": "address, versions, load and replicas; exported checkpoints",
                "feedback": "with `capture`: exchanges, ratings, reviews",
            },
        ),
        JobSpec(
            name="command",
            summary="Run any program: as ranks, once per node, or once.",
            config="ropewalk.jobs.orchestration.command.config:CommandConfig",
            entry="ropewalk.jobs.orchestration.command.job:main",
            engine=Engine.RANKS,
            preload=("ropewalk.jobs.orchestration.command.job",),
            view="ropewalk.jobs.orchestration.command.view:CommandView",
        ),
        JobSpec(
            name="function",
            summary="Call a Python function; submitted by `ropewalk.submit` from a program or notebook.",
            config="ropewalk.jobs.orchestration.function.config:FunctionConfig",
            entry="ropewalk.jobs.orchestration.function.job:main",
            engine=Engine.PROCESS,
            preload=("ropewalk.jobs.orchestration.function.job",),
            files={
                "call.pkl": "function and arguments that were submitted by value; the result is `result.pkl` of the attempt",
            },
        ),
        JobSpec(
            name="dev",
            summary="Hold a node for ssh sessions, editors and notebooks; submitted by `ropewalk dev`.",
            config="ropewalk.jobs.orchestration.dev.config:DevConfig",
            entry="ropewalk.jobs.orchestration.dev.job:main",
            engine=Engine.PROCESS,
            view="ropewalk.jobs.orchestration.dev.view:DevView",
            files={"work": "copy of the submitted code, which sessions may change"},
        ),
        JobSpec(
            name="sweep",
            summary="Search for the best configuration of another job; each trial is a run.",
            config="ropewalk.jobs.orchestration.sweep.config:SweepConfig",
            entry="ropewalk.jobs.orchestration.sweep.job:main",
            engine=Engine.PROCESS,
            view="ropewalk.jobs.orchestration.sweep.report.view:SweepView",
            files={
                "trials": "parameters, runs and states of the trials",
                "sweep.html": "page of the sweep",
                "sweep*.png": "its plots, written by `ropewalk show RUN --plot`",
                "clusters.yaml": "profiles of the clusters of driver and trials",
                "confirm.json": "runs that `ropewalk confirm` started",
                ".confirm.lock": "lock of `ropewalk confirm`",
            },
        ),
        JobSpec(
            name="pipeline",
            summary="Run several jobs with dependencies; each is a run.",
            config="ropewalk.jobs.orchestration.pipeline.config:PipelineConfig",
            entry="ropewalk.jobs.orchestration.pipeline.job:main",
            engine=Engine.PROCESS,
            view="ropewalk.jobs.orchestration.pipeline.view:PipelineView",
            files={"steps.lock": "lock of the runs of the steps"},
        ),
    )
}


def find_job(name: str) -> JobSpec:
    """Find a job: a built-in name, that of an entry point, or MODULE:NAME of a JobSpec in the user's project.

    Raises ConfigError with a suggestion.
    """
    if name in JOBS:
        return JOBS[name]
    if ":" in name:
        return _own_job(name)
    from importlib.metadata import entry_points  # slow: it searches every installed package

    for point in entry_points(group=GROUP, name=name):
        spec: JobSpec = point.load()
        return spec
    near = difflib.get_close_matches(name, JOBS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown job {name!r}{hint}; jobs: {', '.join(JOBS)}, or MODULE:NAME of your JobSpec")


def _own_job(name: str) -> JobSpec:
    """Import a JobSpec of the user's with its configuration and entry. Raises ConfigError."""
    spec = user_object("job", name)
    if not isinstance(spec, JobSpec):
        raise wrong_kind("job", name, spec, "a JobSpec")
    if spec.name in JOBS:
        raise ConfigError(f"job: {name}: the name {spec.name!r} belongs to a built-in job; give your JobSpec another one")
    kind, entry = user_object(f"{name}: config", spec.config), user_object(f"{name}: entry", spec.entry)
    if not (isinstance(kind, type) and issubclass(kind, JobConfig)):
        raise wrong_kind(f"{name}: config", spec.config, kind, "a subclass of JobConfig")
    if not callable(entry):
        raise wrong_kind(f"{name}: entry", spec.entry, entry, "a function of the JobContext")
    return spec


def config_of(spec: JobSpec) -> type[JobConfig]:
    """Import and return a job's configuration class, whose module is light."""
    kind: type[JobConfig] = _import_name(spec.config)
    return kind


def view_class(job: str) -> Any:
    """Return the view class of a job (a `ropewalk.jobs.runs.show.view.RunView`), or the default if the job is not installed."""
    if ":" in job:
        return _import_name(JobSpec.view)  # `ps` and `show` cannot import the user's module from everywhere
    try:
        return _import_name(find_job(job).view)
    except ConfigError:
        return _import_name(JobSpec.view)


def _import_name(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)

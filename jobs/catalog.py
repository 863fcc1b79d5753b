"""The jobs there are, by name: listing them imports none of them."""

import difflib
from importlib import import_module

from cluster.config import JobConfig
from cluster.errors import ConfigError
from cluster.spec import Engine, JobSpec

_TRAINING = ("torch", "transformers", "torch.distributed.fsdp", "torch.distributed.checkpoint", "jobs.training.assembly")

JOBS: dict[str, JobSpec] = {
    spec.name: spec
    for spec in (
        JobSpec(
            name="preprocess",
            summary="Turn raw documents into a sharded Arrow data set of tokens.",
            config="jobs.preprocess:PreprocessConfig",
            entry="jobs.preprocess:main",
            engine=Engine.RAY,
        ),
        JobSpec(
            name="pretrain",
            summary="Train a language model with FSDP on a data set.",
            config="jobs.pretrain:PretrainConfig",
            entry="jobs.pretrain:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "jobs.pretrain"),
        ),
        JobSpec(
            name="evaluate",
            summary="Score a model on held-out text: bits per byte, perplexity, sample generations.",
            config="jobs.evaluate:EvaluateConfig",
            entry="jobs.evaluate:main",
            engine=Engine.RANKS,
            preload=(*_TRAINING, "jobs.evaluate"),
        ),
    )
}


def find_job(name: str) -> JobSpec:
    """The job that a user names. Raises ConfigError with the nearest name."""
    if name in JOBS:
        return JOBS[name]
    near = difflib.get_close_matches(name, JOBS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown job {name!r}{hint}; jobs: {', '.join(JOBS)}")


def config_of(spec: JobSpec) -> type[JobConfig]:
    """The job's configuration class; imports that light module alone."""
    module, _, attribute = spec.config.partition(":")
    kind: type[JobConfig] = getattr(import_module(module), attribute)
    return kind

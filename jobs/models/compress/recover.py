"""Train a pruned model in the common training loop, as a run within the run that is resumed with it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.datapipe.loader.loader import Source as DataSet
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.models.compress.config import CompressConfig
from ropewalk.jobs.models.compress.methods import Method
from ropewalk.jobs.results.score import hash_of
from ropewalk.jobs.training.loop.architecture.model_record import open_weights, tokenizer_of
from ropewalk.jobs.training.loop.config import TrainingConfig
from ropewalk.jobs.training.loop.model import ModelPlan
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.loop.source import TokenSource
from ropewalk.jobs.training.loop.token_data import weighted
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from ropewalk.sharding.group import Group

FOLDER = "recovery"


@dataclass(frozen=True, kw_only=True)
class _Within(JobContext):
    """Context of a run within a run: its files are below the outer run, which fences it."""

    outer: JobContext

    @property
    def fence(self) -> Fence:
        return self.outer.fence


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Trains pruned models. Variants with the same first methods share the training."""

    context: JobContext
    config: CompressConfig
    dense: OpenModel
    group: Group

    def __call__(self, model: Any, methods: Sequence[Method], folder: Path) -> Any:
        """Return the model after the training of the last of these methods. Raises StopRequested, and resumes from there."""
        key = hash_of([method.model_dump(mode="json", exclude_none=True) for method in methods]).rpartition(":")[2][:16]
        training_folder = self.context.run.path / FOLDER / key
        begin = training_folder / "begin"
        if not begin.is_dir():
            unfinished = training_folder / ".begin"
            shutil.rmtree(unfinished, ignore_errors=True)
            model.save_pretrained(unfinished)
            open_weights(unfinished)
            unfinished.rename(begin)
        run = self._run(training_folder, methods[-1])
        config = TrainingConfig.model_validate(run.record["config"])
        context = _Within(
            outer=self.context, run=run, attempt=self.context.attempt, group=self.context.group, stop_flag=self.context.stop_flag
        )
        run.make_folders(context.attempt)
        train(context, config, self.group, self._recipe(run, config, methods[-1], begin))
        return load_model(run)[0]

    def _run(self, folder: Path, method: Method) -> RunDir:
        options = method.options
        config = {
            "steps": options.steps,
            "seed": self.config.seed,
            "batch": options.batch.model_dump(mode="json"),
            "optim": options.optim.model_dump(mode="json"),
            "checkpoint": options.checkpoint.model_dump(mode="json"),
            "validation": {"every_steps": options.steps},
            "parallel": self.config.parallel.model_dump(mode="json"),
            "precision": self.config.precision.model_dump(mode="json"),
            "keep_zeros": True,
        }
        return RunDir(folder, record={"run": folder.name, "job": "compress", "cluster": "local", "config": config})

    def _recipe(self, run: RunDir, config: TrainingConfig, method: Method, begin: Path) -> Recipe:
        data = method.options.data or self.config.data
        seq_len = method.options.seq_len or self.config.seq_len
        loader = TokenLoader(
            [DataSet(source.path, source.weight) for source in weighted(data)], seq_len=seq_len, seed=config.seed
        )
        tokenizer = tokenizer_of(loader.manifests, data)
        plan = ModelPlan.of(ModelConfig(path=str(begin)), run, tokenizer=tokenizer.record, seq_len=seq_len)
        return Recipe(
            model=plan,
            tokenizer=tokenizer,
            source=TokenSource(loader),
            validation=None,
            objective=lambda model, group: NextToken(),
        )

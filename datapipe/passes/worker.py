"""Tasks of a data set, independent of where they run: read a unit, train the tokenizer, encode a shard, list rejections."""

from importlib import import_module
from typing import Any

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.stages import StageTask, run_stage_task
from ropewalk.datapipe.filters.filter import Filter
from ropewalk.datapipe.filters.registry import Filters, make_filter
from ropewalk.datapipe.inputs.files import InputFile, Unit
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.inputs.split import SplitFile, split_file
from ropewalk.datapipe.inputs.unit_files import UnitSummary
from ropewalk.datapipe.passes.ingest import ingest_unit
from ropewalk.datapipe.passes.rejected import RejectedPlan, write_rejected
from ropewalk.datapipe.passes.task import Task
from ropewalk.datapipe.report.fairness import false_positive_gaps
from ropewalk.datapipe.report.samples import Facts
from ropewalk.datapipe.shard_table import WrittenShard
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.tokens.config import Augment
from ropewalk.datapipe.tokens.sample import read_sample
from ropewalk.datapipe.tokens.shards import ShardPlan, Slice, encode_shard
from ropewalk.datapipe.tokens.tokenizer import Encoder, open_encoder, train_tokenizer, write_tokenizer


class Worker:
    """Runs tasks of one data set. Every method commits its result before it returns, so that it can be killed at any time."""

    def __init__(self, output_url: str, work_url: str) -> None:
        self.output, self.work = StoragePath(output_url), StoragePath(work_url)
        self.encoder: Encoder | None = None
        self.filters: dict[str, Filter] | None = None

    def do(self, task: Task) -> Any:
        """Run a task and return its result."""
        module, _, function = task.method.rpartition(":")
        if module:
            return getattr(import_module(module), function)(self.output, self.work, *task.arguments)
        return getattr(self, function)(*task.arguments)

    def split(self, file: InputFile, unit_mib: float) -> SplitFile:
        return split_file(file, unit_mib, self.work)

    def ingest(
        self, unit: Unit, rules: ReadRules, filters: Filters, near: NearDuplicates | None, by_language: bool
    ) -> UnitSummary:
        """Read and filter one unit of the input; with `by_language`, store the language of each document."""
        if self.filters is None:
            self.filters = _make_filters(filters)
        return ingest_unit(unit, rules, self.filters, self.work, near=near, by_language=by_language)

    def stage(self, task: StageTask) -> dict[str, Any]:
        """Run one task of a stage over all documents."""
        return run_stage_task(task, self.work)

    def train(self, sample: tuple[Slice, ...], vocabulary: int, marks: tuple[str, ...] = ()) -> None:
        write_tokenizer(self.output, self.work, train_tokenizer(read_sample(sample, self.work), vocabulary, marks))

    def encode(self, plan: ShardPlan, backend: str, augment: Augment | None = None) -> WrittenShard:
        if self.encoder is None or self.encoder.backend != backend:
            self.encoder = open_encoder(self.output, self.work, backend)
        return encode_shard(plan, self.encoder, self.work, self.output, augment)

    def reject(self, plan: RejectedPlan) -> Facts:
        return write_rejected(plan, self.work, self.output)

    def fairness(self, filters: Filters) -> dict[str, Any]:
        return false_positive_gaps(_make_filters(filters))


def _make_filters(filters: Filters) -> dict[str, Filter]:
    return {name: make_filter(name, options) for entry in filters for name, options in entry.items()}

"""Order of the passes that turn raw documents into a data set. The caller decides where tasks run."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.equal import drop_equal_texts, rename_equal_ids
from ropewalk.datapipe.dedup.exact import EMPTIED, NEAR_DUPLICATE, TRAIN, VALIDATION, Corpus, load_corpus
from ropewalk.datapipe.dedup.near.search import NearDecisions, NearUnit, find_near_duplicates
from ropewalk.datapipe.dedup.paragraphs.cutting import cut_sizes
from ropewalk.datapipe.dedup.paragraphs.find import find_repeated_paragraphs
from ropewalk.datapipe.dedup.stages import StageTask
from ropewalk.datapipe.filters.decontamination.items import check_items
from ropewalk.datapipe.inputs.files import LARGEST_UNIT_MIB, InputFile, Unit, list_inputs, plan_units, unit_size_mib
from ropewalk.datapipe.inputs.keys import missing_key
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.inputs.split import files_to_split, pieces_of, read_split
from ropewalk.datapipe.inputs.streams import naming_full_disk
from ropewalk.datapipe.inputs.unit_files import UnitSummary, read_summary, rejection_reasons, summary_name, texts_name
from ropewalk.datapipe.manifest import Manifest, NearRecord, Rejected, Totals
from ropewalk.datapipe.passes.balance import balance
from ropewalk.datapipe.passes.config import DataSetConfig, stages
from ropewalk.datapipe.passes.input_records import input_records
from ropewalk.datapipe.passes.plan import begin_or_resume, deciding_keys, find_complete, remote_versions
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.rejected import plan_rejected
from ropewalk.datapipe.passes.task import WORK, Task
from ropewalk.datapipe.report.report import write_report
from ropewalk.datapipe.report.samples import Facts, merge
from ropewalk.datapipe.shard_table import WrittenShard, write_data_set
from ropewalk.datapipe.tokens.fast import FastTokenizerError
from ropewalk.datapipe.tokens.sample import plan_sample
from ropewalk.datapipe.tokens.shards import FOLDERS, Layout, ShardPlan, plan_shards, read_sidecar, read_slice, shard_limit
from ropewalk.datapipe.tokens.tokenizer import Encoder, open_encoder, read_tokenizer, take_tokenizer, write_tokenizer

log = logging.getLogger(__name__)

RunTasks = Callable[[Sequence[Task]], Iterable[tuple[Task, Any]]]
SLOW_NAME = "slow-tokenizer.json"  # in the work area: the reason to encode with `tokenizers`
CHECKED_DOCUMENTS, CHECKED_CHARS = 64, 4096  # of each


def make_data_set(config: DataSetConfig, seed: int, run_tasks: RunTasks, progress: Progress) -> Manifest:
    """Make a data set, or resume one; return the manifest of a complete data set at once.

    `run_tasks` yields each task with the result of `Worker.do`, in any order. The data set depends only on input and
    configuration. Raises DataError, ConfigError, StorageError.
    """
    output = StoragePath(config.output)
    files = list_inputs(config.input)
    _forbid_output_in_input(files, output)
    keys = deciding_keys(config, seed)
    manifest = find_complete(output, keys, files)
    if manifest is None:
        with naming_full_disk(output.url):
            manifest = _Pipeline(config, seed, files, run_tasks, progress).run(keys)
    output.remove(WORK)
    return manifest


def _forbid_output_in_input(files: Sequence[InputFile], output: StoragePath) -> None:
    inside = next((f.url for f in files if f.url.startswith(f"{output.url}/") or f.url == output.url), None)
    if inside is not None:
        raise DataError(f"input {inside!r} is inside the output {output.url!r}; choose an output outside the input")


class _Pipeline:
    """The stages of one data set; each skips work that is already committed."""

    def __init__(self, config: DataSetConfig, seed: int, files: list[InputFile], run_tasks: RunTasks, progress: Progress) -> None:
        self.config, self.seed, self.files = config, seed, files
        self.run_tasks, self.progress = run_tasks, progress
        self.unit_mib = unit_size_mib(files, config.unit_mib)
        self.output = StoragePath(config.output)
        self.work = self.output.child(WORK)

    def run(self, keys: dict[str, Any]) -> Manifest:
        if self.config.decontaminate:
            check_items(self.config.decontaminate.against)
        begin_or_resume(self.output, self.work, keys, self.files)
        if self.config.tokenizer.path and read_tokenizer(self.output, self.work) is None:
            tokenizer = take_tokenizer(self.config.tokenizer.path)
            encoder = Encoder(tokenizer)  # fails now rather than after the first pass
            for mark in self._marks():
                encoder.special(mark)
            write_tokenizer(self.output, self.work, tokenizer)
        units = plan_units(self.files, self.unit_mib, self.split())
        summaries = self.ingest(units)
        corpus = load_corpus(units, summaries, self.work, self.config.validation_fraction)
        drop_equal_texts(corpus, self.work, self._run_stage)
        near = self.find_near(units, summaries, corpus)
        counts = self.cut_paragraphs(units, summaries, corpus)
        renamed, num_renamed = rename_equal_ids(corpus, self.work, self._run_stage)
        corpus, mixture = self.balance(units, corpus)
        blocks, cut = [s.blocks for s in summaries], self.config.paragraphs is not None
        layout = Layout(units=units, blocks=blocks, corpus=corpus, renamed=renamed, cut=cut)
        self._require_documents(summaries, corpus)
        self.ensure_tokenizer(layout)
        encoder, shards, kept_facts = self.encode(layout)
        rejected, dropped_facts = self.list_rejected(layout, summaries, near)
        self._remove_leftovers([*(s.path for s in shards), *rejected.files])
        for summary in summaries:
            counts.update(summary.counts)
        manifest = Manifest(
            tokenizer=encoder.record(),
            token_type=encoder.token_type,
            totals=Totals.of_shards(shards),
            rejected=rejected,
            counts=dict(sorted(counts.items())),
            near_duplicates=NearRecord(**near.counts, sizes=near.sizes) if self.config.near_duplicates else None,
            mixture=mixture,
            renamed_ids=num_renamed,
            inputs=tuple(input_records(layout, summaries, self.work)),
            versions=remote_versions(self.files),
            config=keys,
        )
        write_report(self.output, manifest, kept_facts, dropped_facts, self.find_gaps())
        return write_data_set(self.output, manifest, shards)

    def balance(self, units: list[Unit], corpus: Corpus) -> tuple[Corpus, dict[str, dict[str, float]]]:
        """Choose copies of documents by the configured shares; documents without a copy are dropped."""
        return balance(self.config.balance, units, corpus, self.work) if self.config.balance else (corpus, {})

    def split(self) -> dict[str, tuple[list[InputFile], str | None]]:
        """Split large compressed files into pieces, so that many tasks can read them."""
        files = files_to_split(self.files, self.config.unit_mib or LARGEST_UNIT_MIB)  # smaller ones are read as fast unsplit
        done = {file.url: split for file in files if (split := read_split(file, self.work))}
        tasks = [Task(method="split", label=f.url, arguments=(f, self.unit_mib)) for f in files if f.url not in done]
        if tasks:
            self.progress.begin("decompress", sum(f.size for f in files), "B", sum(f.size for f in files if f.url in done))
        for task, split in self.run_tasks(tasks):
            done[split.url] = split
            self.progress.add(task.arguments[0].size)
        return {file.url: (pieces_of(file, done[file.url], self.work), done[file.url].damage) for file in files}

    def ingest(self, units: list[Unit]) -> list[UnitSummary]:
        """Pass 1: read and filter every unfinished unit."""
        present = set(self.work.names("units"))
        done = {u.index: read_summary(self.work, u.index) for u in units if summary_name(u.index).rpartition("/")[2] in present}
        rules = ReadRules(**{name: getattr(self.config, name) for name in ReadRules.model_fields})
        by_language = self.config.balance is not None and self.config.balance.by == "language"
        arguments = (rules, stages(self.config), self.config.near_duplicates, by_language)
        tasks = [Task(method="ingest", label=u.label, arguments=(u, *arguments)) for u in units if u.index not in done]
        self.progress.begin("read", sum(u.size for u in units), "B", sum(u.size for u in units if u.index in done))
        for task, summary in self.run_tasks(tasks):
            done[summary.index] = summary
            self.progress.add(task.arguments[0].size, summary.documents, summary.bytes)
        for unit in units:
            for index, damage in done[unit.index].damage.items():
                log.warning("%s: %s; everything before the damage is kept", unit.files[int(index)].url, damage)
        return [done[u.index] for u in units]

    def find_near(self, units: list[Unit], summaries: list[UnitSummary], corpus: Corpus) -> NearDecisions:
        """Drop near-duplicates, if configured."""
        if self.config.near_duplicates is None:
            return NearDecisions()
        near_units = [
            NearUnit(index=unit.index, blocks=tuple(summary.blocks), texts=texts_name(unit.index))
            for unit, summary in zip(units, summaries, strict=True)
        ]
        decisions = find_near_duplicates(
            near_units,
            self.config.near_duplicates,
            dropped=corpus.is_dropped,
            total_bytes=int(corpus.size.sum(dtype=np.int64)),
            work=self.work,
            run=self._run_stage,
        )
        for unit in units:
            corpus.fate[decisions.of(unit.index, self.work)[0]] = NEAR_DUPLICATE
        return decisions

    def cut_paragraphs(self, units: list[Unit], summaries: list[UnitSummary], corpus: Corpus) -> Counter[str]:
        """Cut paragraphs that repeat earlier ones, if configured, and drop emptied documents; return counts."""
        if self.config.paragraphs is None:
            return Counter()
        counts = find_repeated_paragraphs(
            units,
            summaries,
            self.config.paragraphs,
            dropped=corpus.is_dropped,
            total_bytes=int(corpus.size.sum(dtype=np.int64)),
            work=self.work,
            run=self._run_stage,
        )
        for unit in units:
            size, fate = corpus.size[corpus.rows_of(unit.index)], corpus.fate[corpus.rows_of(unit.index)]
            size -= cut_sizes(self.work, unit.index, len(size))
            fate[size == 0] = EMPTIED
        return Counter(counts)

    def _run_stage(self, label: str, tasks: Sequence[StageTask]) -> Iterator[tuple[StageTask, dict[str, Any]]]:
        self.progress.begin(label, len(tasks), "parts")
        for task, result in self.run_tasks([Task(method="stage", label=task.name, arguments=(task,)) for task in tasks]):
            self.progress.add(1)
            yield task.arguments[0], result

    def _require_documents(self, summaries: list[UnitSummary], corpus: Corpus) -> None:
        if not any((corpus.fate[corpus.rows_of(unit)] == TRAIN).any() for unit in corpus.units):
            held_out = int((corpus.fate == VALIDATION).sum())
            remedy = missing_key(self.files, self.config.text_key)
            raise DataError(
                f"no document is left to train on: {len(corpus.fate)} passed the filters, {held_out} of these are for validation;"
                f" rejected: {self._reasons(summaries)};"
                f" {remedy or 'check text_key, min_chars, filters, validation_fraction and the input'}"
            )

    def _reasons(self, summaries: list[UnitSummary]) -> str:
        reasons: Counter[str] = Counter()
        for summary in summaries:
            reasons.update(rejection_reasons(self.work, summary.index))
        return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none"

    def ensure_tokenizer(self, layout: Layout) -> None:
        """Train the tokenizer, unless it is copied or already trained."""
        choice = self.config.tokenizer
        if choice.train is None or read_tokenizer(self.output, self.work) is not None:
            return
        sample = plan_sample(layout, choice.sample_mib, self.seed)
        self.progress.begin("train the tokenizer", 1, "tokenizer")
        for _ in self.run_tasks(
            [Task(method="train", label="training the tokenizer", arguments=(sample, choice.train, self._marks()))]
        ):
            self.progress.add(1)

    def _marks(self) -> tuple[str, ...]:
        augment = self.config.augment
        return augment.fim.tokens if augment and augment.fim else ()

    def encode(self, layout: Layout) -> tuple[Encoder, list[WrittenShard], Facts]:
        """Pass 2: tokenize every unfinished shard, all with `tokenizers` if the faster backend turns out to differ."""
        plans = plan_shards(layout, shard_limit(layout.corpus.kept_bytes(), self.config.shard_mib))
        encoder = self.open_encoder(plans)
        present = set(self.work.names("encoded"))
        shards = [read_sidecar(p, self.work, self.output) if p.sidecar.rpartition("/")[2] in present else None for p in plans]
        done = {shard.path: shard for shard in shards if shard}
        try:
            self._encode_shards(plans, done, encoder.backend)
        except FastTokenizerError as error:
            self.work.remove("encoded")  # pieces of these shards were compared, not all of them
            self._use_slow_tokenizer(str(error))
            encoder = open_encoder(self.output, self.work, "tokenizers")
            done = {}
            self._encode_shards(plans, done, encoder.backend)
        return encoder, [done[p.path] for p in plans], merge(json.loads(self.work.read(p.facts)) for p in plans)

    def open_encoder(self, plans: Sequence[ShardPlan]) -> Encoder:
        """Open the configured backend if it gives the same tokens as `tokenizers` for the first documents, else `tokenizers`."""
        if self.config.tokenizer.backend == "tokenizers":
            return open_encoder(self.output, self.work, "tokenizers")
        try:
            if self.work.exists(SLOW_NAME):  # of an earlier attempt
                raise FastTokenizerError(json.loads(self.work.read(SLOW_NAME)))
            encoder = open_encoder(self.output, self.work, self.config.tokenizer.backend)
            documents = (document for plan in plans for part in plan.slices for document in read_slice(part, self.work))
            assert encoder.fast is not None
            encoder.fast.check([document.text[:CHECKED_CHARS] for document in islice(documents, CHECKED_DOCUMENTS)])
        except FastTokenizerError as error:
            self._use_slow_tokenizer(str(error))
            return open_encoder(self.output, self.work, "tokenizers")
        return encoder

    def _use_slow_tokenizer(self, reason: str) -> None:
        self.work.write(SLOW_NAME, json.dumps(reason).encode())
        log.warning("encoding with tokenizers, which is slower: %s", reason)
        self.progress.on_slow_tokenizer(reason)

    def _encode_shards(self, plans: Sequence[ShardPlan], done: dict[str, WrittenShard], backend: str) -> None:
        """Encode the shards that are not in `done`, and add them there."""
        tasks = [
            Task(method="encode", label=p.path, arguments=(p, backend, self.config.augment)) for p in plans if p.path not in done
        ]
        total = sum(p.documents for p in plans)
        self.progress.begin("tokenize", total, "documents", sum(s.documents for s in done.values()))
        for _, shard in self.run_tasks(tasks):
            done[shard.path] = shard
            self.progress.add(shard.documents, shard.documents, shard.bytes)

    def find_gaps(self) -> dict[str, Any]:
        """Measure how often the filters drop harmless texts about many groups of people."""
        filters = tuple(entry for entry in stages(self.config) if "pii" not in entry)
        tasks = [Task(method="fairness", label="harmless texts", arguments=(filters,))] if filters else []
        return next((gaps for _, gaps in self.run_tasks(tasks)), {})

    def list_rejected(self, layout: Layout, summaries: list[UnitSummary], near: NearDecisions) -> tuple[Rejected, Facts]:
        """List the dropped documents, in one file for each unit that has any."""
        plans = plan_rejected(layout, summaries, near, self.work)
        reasons: Counter[str] = Counter()
        facts: list[Facts] = []
        for _, facts_here in self.run_tasks([Task(method="reject", label=p.path, arguments=(p,)) for p in plans]):
            reasons.update(facts_here["reasons"])
            facts.append(facts_here)
        rejected = Rejected(total=reasons.total(), reasons=dict(sorted(reasons.items())), files=tuple(p.path for p in plans))
        return rejected, merge(facts)

    def _remove_leftovers(self, paths: list[str]) -> None:
        """Remove files of killed writers, which are not among the data set's `paths`."""
        for folder in (*FOLDERS.values(), "rejected", "tokenizer", ""):
            for name in self.output.names(folder):
                path = f"{folder}/{name}" if folder else name
                if (name.startswith(".") and name != WORK) or (folder in {*FOLDERS.values(), "rejected"} and path not in paths):
                    self.output.remove(path)

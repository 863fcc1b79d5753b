"""Turn files of conversations into a data set of tokens and loss masks. The caller decides where tasks run."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.config import KIND, ChatConfig
from ropewalk.datapipe.chat.shards import ChatSplit, ChatSummary, ChatUnit, unit_hashes
from ropewalk.datapipe.chat.tokenizer import write_files
from ropewalk.datapipe.inputs.files import InputFile, Unit, list_inputs, plan_units
from ropewalk.datapipe.inputs.unit_files import rejections_name, summary_name
from ropewalk.datapipe.manifest import InputRecord, Manifest, Rejected, Totals, hash_of
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.task import WORK, Task
from ropewalk.datapipe.shard_table import WrittenShard, write_data_set
from ropewalk.datapipe.tokens.tokenizer import FOLDER, Encoder, TokenizerFiles

RunTasks = Callable[[Sequence[Task]], Iterable[tuple[Task, Any]]]

UNIT_MIB = 16
_WORKER = "ropewalk.datapipe.chat.shards"  # by name, as it imports transformers


def chat_key(inputs: Sequence[str], tokenizer: TokenizerFiles, config: ChatConfig, validation_fraction: float) -> dict[str, Any]:
    """Return the values that determine a data set of conversations: inputs, tokenizer, template, format. Raises DataError."""
    files = {file.url: [file.size, file.version] for file in list_inputs(inputs)}
    return {
        KIND: config.model_dump(mode="json", exclude={"template", "added_tokens"}),  # both are part of the tokenizer
        "tokenizer": hash_of({name: data.decode() for name, data in sorted(tokenizer.files.items())}),
        "validation_fraction": validation_fraction,
        "inputs": files,
        "versions": {name: version(name) for name in ("pyarrow", "tokenizers", "transformers")},
    }


def make_chat_set(
    output: StoragePath,
    inputs: Sequence[str],
    tokenizer: TokenizerFiles,
    config: ChatConfig,
    *,
    validation_fraction: float,
    run_tasks: RunTasks,
    progress: Progress,
) -> Manifest:
    """Make the data set, or resume it after a kill. Raises DataError, ConfigError, StorageError."""
    keys = chat_key(inputs, tokenizer, config, validation_fraction)
    work = output.child(WORK)
    if _read_plan(work) not in (None, json.loads(json.dumps(keys))):
        output.remove("")  # left by a killed attempt with other input
    write_files(output.child(FOLDER), tokenizer)
    work.write("plan.json", json.dumps(keys).encode())
    encoder = Encoder(tokenizer)
    files = list_inputs(inputs)
    units = plan_units(files, UNIT_MIB)
    plans = [ChatUnit(unit=unit, config=config, token_type=encoder.token_type) for unit in units]
    summaries = _encode(plans, work, run_tasks, progress)
    held_out = _held_out(summaries, work, validation_fraction)
    shards = _split(summaries, held_out, run_tasks, progress)
    rejected = _list_rejected(summaries, work, output)
    manifest = Manifest(
        tokenizer=encoder.record(),
        token_type=encoder.token_type,
        totals=Totals.of_shards(shards),
        rejected=rejected,
        inputs=_input_records(files, units, summaries),
        config=keys,
    )
    written = write_data_set(output, manifest, sorted(shards, key=lambda shard: shard.path))
    output.remove(WORK)
    return written


def _read_plan(work: StoragePath) -> Any:
    try:
        return json.loads(work.read("plan.json"))
    except FileNotFoundError:
        return None


def _encode(plans: list[ChatUnit], work: StoragePath, run_tasks: RunTasks, progress: Progress) -> list[ChatSummary]:
    """Pass 1: encode every unfinished unit."""
    present = set(work.names("units"))
    units = [plan.unit for plan in plans]
    finished = [u.index for u in units if summary_name(u.index).rpartition("/")[2] in present]
    done = {index: ChatSummary(**json.loads(work.read(summary_name(index)))) for index in finished}
    progress.begin("encode conversations", sum(u.size for u in units), "B", sum(u.size for u in units if u.index in done))
    for task, summary in run_tasks(
        [Task(method=f"{_WORKER}:encode_unit", label=p.unit.label, arguments=(p,)) for p in plans if p.unit.index not in done]
    ):
        done[summary.index] = summary
        progress.add(task.arguments[0].unit.size, summary.conversations)
    summaries = [done[u.index] for u in units]
    if not sum(s.conversations for s in summaries):
        raise DataError(f"no conversation is left to train on; rejected: {describe_rejections(summaries)}")
    return summaries


def describe_rejections(summaries: Sequence[ChatSummary]) -> str:
    """Describe the number of rejections by reason, each with an example."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for summary in summaries:
        counts.update(summary.rejected)
        examples = {**summary.example, **examples}
    return "; ".join(f"{reason} {count} (such as {examples[reason]})" for reason, count in counts.most_common()) or "none"


def _held_out(summaries: Sequence[ChatSummary], work: StoragePath, fraction: float) -> int:
    """Return the largest hash of the validation split, such that it has its share of conversations; -1 for no split."""
    hashes = np.sort(np.concatenate([unit_hashes(work, s.index) for s in summaries if s.conversations]))
    count = min(max(1, round(len(hashes) * fraction)), len(hashes) - 1) if fraction else 0
    if count < 1 or hashes[count - 1] == hashes[-1]:
        return -1
    return int(hashes[count - 1])


def _split(summaries: Sequence[ChatSummary], held_out: int, run_tasks: RunTasks, progress: Progress) -> list[WrittenShard]:
    """Pass 2: write the shards of both splits, unit by unit."""
    plans = [ChatSplit(index=s.index, held_out=held_out) for s in summaries if s.conversations]
    progress.begin("write shards", len(plans), "units")
    shards: list[WrittenShard] = []
    for _, shards_of_unit in run_tasks(
        [Task(method=f"{_WORKER}:split_unit", label=f"unit {p.index}", arguments=(p,)) for p in plans]
    ):
        shards += shards_of_unit
        progress.add(1)
    return shards


def _list_rejected(summaries: Sequence[ChatSummary], work: StoragePath, output: StoragePath) -> Rejected:
    counts: Counter[str] = Counter()
    paths: list[str] = []
    for summary in summaries:
        counts.update(summary.rejected)
        if summary.rejected:
            paths.append(f"rejected/part-{len(paths):05d}.jsonl")
            output.write(paths[-1], work.read(rejections_name(summary.index)))
    return Rejected(total=counts.total(), reasons=dict(sorted(counts.items())), files=tuple(paths))


def _input_records(files: list[InputFile], units: list[Unit], summaries: list[ChatSummary]) -> tuple[InputRecord, ...]:
    records = []
    for file in files:
        mine = [s for u, s in zip(units, summaries, strict=True) if u.files[0].url == file.url]
        checksum = mine[0].checksum if len(mine) == 1 else hash_of([s.checksum for s in mine]).removeprefix("xxh3:")
        damage = next((s.damage for s in mine if s.damage), None)
        accepted, rejected = sum(s.conversations for s in mine), sum(sum(s.rejected.values()) for s in mine)
        records.append(
            InputRecord(
                path=file.url, size=file.size, checksum=f"xxh3:{checksum}", documents=accepted, rejected=rejected, damage=damage
            )
        )
    return tuple(records)

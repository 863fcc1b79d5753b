"""Prompts: encoded once, stored in the run, and ordered by a pure function of (seed, slot, try)."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.files import append_lines, json_text, read_json, write_atomically
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.conversation import BadConversationError, messages_of
from ropewalk.datapipe.chat.template import ChatTokenizer
from ropewalk.datapipe.inputs.files import list_inputs
from ropewalk.datapipe.loader.order import hash_words, permute
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.datapipe.tokens.tokenizer import Encoder, TokenizerFiles
from ropewalk.jobs.training.align.preferences.records import Record, is_held_out, read_records
from ropewalk.jobs.training.loop.architecture.model_record import TokenizerPlan
from ropewalk.jobs.training.rollouts.ledger import HELD_OUT, PROMPTS, arrow_bytes, arrow_table

READY, REJECTED, TOKENIZER = "prompts.json", "rejected.jsonl", "tokenizer"
_Row = dict[str, Any]  # of SCHEMA
SCHEMA = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.int32())), ("record", pa.string())])


class PromptPlan(NamedTuple):
    """Everything that determines the encoded prompts: files, maximum length, chat format, split."""

    data: str
    max_tokens: int
    on_long: Literal["drop", "cut", "error"]
    verbatim: bool | None = None  # plain text, not a message; None: if the tokenizer has no chat template
    system: str | None = None  # for prompts that have none
    validation_data: str | None = None  # held-out prompts; None: a fraction of the data
    validation_fraction: float = 0.0


class Prompt(NamedTuple):
    """A prompt for the policy (tokens) and for rewards (record)."""

    row: int
    tokens: list[int]
    record: dict[str, Any]


def prepare(plan: PromptPlan, files: TokenizerFiles, folder: Path) -> dict[str, Any]:
    """Encode the prompts into the folder, unless an earlier attempt did; returns their counts. Called by one process.

    Raises DataError if no prompt is left, or one is too long and `on_long` is error.
    """
    counted: dict[str, Any] | None = read_json(folder / READY)
    if counted is not None:
        return counted
    (folder / TOKENIZER).mkdir(parents=True, exist_ok=True)
    for name, content in files.files.items():
        write_atomically(folder / TOKENIZER / name, content)
    rows, held_out, rejected = list[_Row](), list[_Row](), list[dict[str, str]]()
    encode = _Encoder(folder / TOKENIZER, plan)
    fraction = plan.validation_fraction if plan.validation_data is None else 0.0
    for record, ids in _encode_records(encode, plan.data, rejected):
        (held_out if is_held_out((record.values or {})["prompt"], fraction) else rows).append(_row(record, ids))
    if plan.validation_data is not None:
        held_out = [_row(record, ids) for record, ids in _encode_records(encode, plan.validation_data, rejected)]
    reasons = dict(Counter(rejection["reason"] for rejection in rejected))
    if not rows:
        summary = ", ".join(f"{reason}: {count}" for reason, count in reasons.items()) or "it is empty"
        raise DataError(f"data: {plan.data}: no usable prompt ({summary}); grpo needs records of {{prompt, ...}}")
    (folder / REJECTED).unlink(missing_ok=True)
    append_lines(folder / REJECTED, rejected)
    write_atomically(folder / PROMPTS, arrow_bytes(pa.Table.from_pylist(rows, SCHEMA)))
    if held_out:
        write_atomically(folder / HELD_OUT, arrow_bytes(pa.Table.from_pylist(held_out, SCHEMA)))
    longest = max(len(row["tokens"]) for row in (*rows, *held_out))
    counted = {
        "prompts": len(rows),
        "held_out": len(held_out),
        "longest": longest,
        "rejected": {"total": len(rejected), "reasons": reasons, "cut": encode.cut},
    }
    counted["tokenizer"] = Encoder(files).record().model_dump()
    write_atomically(folder / READY, json_text(counted))  # last: its presence means that the other files are complete
    return counted


def _encode_records(encode: "_Encoder", data: str, rejected: list[dict[str, str]]) -> Iterator[tuple[Record, list[int]]]:
    """Yield the records of some files with their tokens; rejected ones are appended to `rejected`."""
    for record in read_records(list_inputs([data])):
        ids = encode(record)
        if isinstance(ids, str):
            rejected.append({"id": f"{record.file}:{record.line}", "reason": ids})
        else:
            yield record, ids


def _row(record: Record, tokens: list[int]) -> _Row:
    name = str((record.values or {}).get("id") or f"{record.file}:{record.line}")
    return {"id": name, "tokens": tokens, "record": json.dumps(record.values, default=str)}


def tokenizer_plan(folder: Path, counted: Mapping[str, Any]) -> TokenizerPlan:
    """Return the tokenizer that is stored beside the prompts."""
    return TokenizerPlan(folder=StoragePath(folder / TOKENIZER), record=TokenizerRecord.model_validate(counted["tokenizer"]))


class _Encoder:
    """Encodes records to token ids, or returns the reason of a rejection."""

    def __init__(self, tokenizer: Path, plan: PromptPlan) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        template = self._tokenizer.chat_template
        self._chat = ChatTokenizer(tokenizer, None if template else TEMPLATES["plain"])
        self._verbatim = not template if plan.verbatim is None else plan.verbatim
        self._plan, self.cut = plan, 0

    def __call__(self, record: Record) -> list[int] | str:
        if record.values is None:
            return record.reason
        prompt = record.values.get("prompt")
        if prompt is None:
            return "missing_prompt"
        try:
            ids = self._ids(prompt, record.values.get("tools"))
        except BadConversationError as error:
            return error.reason
        if not ids:
            return "empty_prompt"
        if len(ids) <= self._plan.max_tokens:
            return ids
        if self._plan.on_long == "error":
            raise DataError(
                f"data: {record.file}:{record.line}: the prompt has {len(ids)} tokens, at most {self._plan.max_tokens} fit "
                "(seq_len minus grpo.max_new_tokens); raise seq_len, or set on_long to drop or cut"
            )
        if self._plan.on_long == "drop":
            return "prompt_too_long"
        self.cut += 1
        return ids[-self._plan.max_tokens :]  # the end usually contains the question

    def _ids(self, prompt: Any, tools: Any) -> list[int]:
        if isinstance(prompt, str) and (self._verbatim or not prompt):
            ids: list[int] = self._tokenizer(prompt)["input_ids"] if prompt else []
            return ids
        turns = messages_of(prompt, "user")
        if turns[-1]["role"] == "assistant":
            raise BadConversationError("prompt_ends_with_an_answer")
        if self._plan.system is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self._plan.system}, *turns]
        return self._chat.prompt_ids(turns, tools)


class Prompts:
    """The prompts of a run, by slot."""

    def __init__(self, folder: Path, seed: int | None, name: str = PROMPTS) -> None:
        """Open the prompts of a file; shuffled by the seed, or in the order of the file."""
        self._table = arrow_table((folder / name).read_bytes())
        self._seed = seed

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def longest(self) -> int:
        return max(len(tokens) for tokens in self._table["tokens"])

    def at(self, slot: int, attempt: int = 0) -> Prompt:
        """Return the prompt of a slot. Every prompt comes once per epoch; later tries have another order."""
        epoch, index = divmod(slot, len(self))
        if self._seed is None:
            return self._at_row(index)
        seed = self._seed if attempt == 0 else int(hash_words(self._seed, attempt)[0] >> np.uint64(1))
        return self._at_row(int(permute(np.array([index]), len(self), seed, epoch)[0]))

    def _at_row(self, row: int) -> Prompt:
        return Prompt(row, self._table["tokens"][row].as_py(), json.loads(self._table["record"][row].as_py()))


def held_out_prompts(folder: Path) -> Prompts | None:
    """Open the held-out prompts of a run in the order of the file; None if there are none."""
    return Prompts(folder, None, HELD_OUT) if (folder / HELD_OUT).is_file() else None

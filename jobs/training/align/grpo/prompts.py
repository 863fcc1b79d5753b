"""Prompts: read and encoded once, kept in the run, and dealt in an order that is a pure function of (seed, place, try)."""

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
from ropewalk.datapipe.loader.order import hash_words, permute
from ropewalk.datapipe.manifest import TokenizerRecord
from ropewalk.datapipe.tokens.tokenizer import Encoder, TokenizerFiles
from ropewalk.jobs.training.align.preferences.read import Record, data_files, is_held_out, read_records
from ropewalk.jobs.training.loop.model_record import TokenizerPlan
from ropewalk.jobs.training.rollouts.ledger import HELD_OUT, PROMPTS, arrow_bytes, arrow_table

READY, REJECTED, TOKENIZER = "prompts.json", "rejected.jsonl", "tokenizer"
_Row = dict[str, Any]  # of SCHEMA
SCHEMA = pa.schema([("id", pa.string()), ("tokens", pa.list_(pa.int32())), ("record", pa.string())])


class PromptPlan(NamedTuple):
    """Where prompts come from, and how long they may be."""

    data: str
    max_tokens: int
    on_long: Literal["drop", "cut", "error"]
    verbatim: bool | None = None  # text as it stands, and not as a message; None: where the tokenizer has no chat template
    system: str | None = None  # of prompts that have none
    validation_data: str | None = None  # held-out prompts; None: a fraction of the data
    validation_fraction: float = 0.0


class Prompt(NamedTuple):
    """A prompt as the policy and as its rewards see it."""

    row: int
    tokens: list[int]
    record: dict[str, Any]


def prepare(plan: PromptPlan, files: TokenizerFiles, folder: Path) -> dict[str, Any]:
    """Encode the prompts into the folder, unless an earlier attempt did; returns what was counted. One process calls it.

    Raises DataError where no prompt is left, or one is too long that must not be.
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
    for record, found in _encoded(encode, plan.data, rejected):
        (held_out if is_held_out((record.values or {})["prompt"], fraction) else rows).append(_row(record, found))
    if plan.validation_data is not None:
        held_out = [_row(record, found) for record, found in _encoded(encode, plan.validation_data, rejected)]
    reasons = dict(Counter(one["reason"] for one in rejected))
    if not rows:
        said = ", ".join(f"{reason}: {count}" for reason, count in reasons.items()) or "it is empty"
        raise DataError(f"data: {plan.data}: no prompt is left ({said}); grpo wants records of {{prompt, ...}}")
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
    write_atomically(folder / READY, json_text(counted))  # last: it vouches for the rest
    return counted


def _encoded(encode: "_Encoder", data: str, rejected: list[dict[str, str]]) -> Iterator[tuple[Record, list[int]]]:
    """The records of some files with their tokens; those that are of no use are named in `rejected`."""
    for record in read_records(data_files(data)):
        found = encode(record)
        if isinstance(found, str):
            rejected.append({"id": f"{record.file}:{record.line}", "reason": found})
        else:
            yield record, found


def _row(record: Record, tokens: list[int]) -> _Row:
    name = str((record.values or {}).get("id") or f"{record.file}:{record.line}")
    return {"id": name, "tokens": tokens, "record": json.dumps(record.values, default=str)}


def tokenizer_plan(folder: Path, counted: Mapping[str, Any]) -> TokenizerPlan:
    """The tokenizer that lies beside the prompts."""
    return TokenizerPlan(place=StoragePath(folder / TOKENIZER), record=TokenizerRecord.model_validate(counted["tokenizer"]))


class _Encoder:
    """Records → token ids, or the reason why there are none."""

    def __init__(self, tokenizer: Path, plan: PromptPlan) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer)
        own = self._tokenizer.chat_template
        self._chat = ChatTokenizer(tokenizer, None if own else TEMPLATES["plain"])
        self._verbatim = not own if plan.verbatim is None else plan.verbatim
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
                f"data: {record.file}:{record.line}: the prompt has {len(ids)} tokens, of which {self._plan.max_tokens} fit "
                "(seq_len less grpo.max_new_tokens); raise seq_len, or set on_long to drop or cut"
            )
        if self._plan.on_long == "drop":
            return "prompt_too_long"
        self.cut += 1
        return ids[-self._plan.max_tokens :]  # its end says what is asked

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
    """The prompts of a run, by the place at which they come."""

    def __init__(self, folder: Path, seed: int | None, name: str = PROMPTS) -> None:
        """Those of a file; shuffled by the seed, or in their own order."""
        self._table = arrow_table((folder / name).read_bytes())
        self._seed = seed

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(tokens) for tokens in self._table["tokens"])

    def at(self, slot: int, attempt: int = 0) -> Prompt:
        """The prompt of a place of the run. Every prompt comes once an epoch; those of later tries are shuffled anew."""
        epoch, index = divmod(slot, len(self))
        if self._seed is None:
            return self._at_row(index)
        seed = self._seed if attempt == 0 else int(hash_words(self._seed, attempt)[0] >> np.uint64(1))
        return self._at_row(int(permute(np.array([index]), len(self), seed, epoch)[0]))

    def _at_row(self, row: int) -> Prompt:
        return Prompt(row, self._table["tokens"][row].as_py(), json.loads(self._table["record"][row].as_py()))


def held_out_prompts(folder: Path) -> Prompts | None:
    """The held-out prompts of a run in their own order; None where it has none."""
    return Prompts(folder, None, HELD_OUT) if (folder / HELD_OUT).is_file() else None

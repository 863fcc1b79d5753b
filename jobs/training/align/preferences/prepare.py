"""Tokenize preference data once per run into Arrow files that all attempts and ranks read."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import xxhash

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.files import read_json, write_json
from ropewalk.datapipe.inputs.files import list_inputs
from ropewalk.datapipe.tokens.tokenizer import Encoder as TokenizerEncoder
from ropewalk.datapipe.tokens.tokenizer import TokenizerFiles
from ropewalk.jobs.training.align.preferences.encode import TOO_LONG, Encoder, Tokens
from ropewalk.jobs.training.align.preferences.lengths import Lengths
from ropewalk.jobs.training.align.preferences.records import (
    PAIRED,
    UNPAIRED,
    Preference,
    Record,
    Refused,
    is_held_out,
    labelled_of,
    pair_of,
    read_records,
)

SPLITS = ("train", "validation")
ROWS_A_BATCH = 1024
_IDS = pa.large_list(pa.int32())
_SCHEMAS = {
    True: pa.schema([("prompt", _IDS), ("chosen", _IDS), ("rejected", _IDS), ("line", pa.int64())]),
    False: pa.schema([("prompt", _IDS), ("completion", _IDS), ("label", pa.bool_()), ("line", pa.int64())]),
}


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    """Everything that determines a prepared preference set: files, tokenizer limits, chat format, split."""

    data: str
    validation_data: str | None
    validation_fraction: float
    paired: bool
    seq_len: int
    on_long: str
    verbatim: bool | None
    system: str | None


def read_data_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a completely prepared folder, or None if preparation has not finished."""
    manifest = read_json(folder / "manifest.json")
    return dict(manifest) if manifest else None


def prepare(plan: DataPlan, tokenizer: TokenizerFiles, folder: Path) -> dict[str, Any]:
    """Tokenize the data into `folder`, replacing its content; returns the manifest. Raises DataError if no record is usable."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "tokenizer").mkdir(parents=True)
    for name, content in tokenizer.files.items():
        (partial / "tokenizer" / name).write_bytes(content)
    manifest = _Preparation(plan, partial).run()
    manifest["tokenizer"] = TokenizerEncoder(tokenizer).record().model_dump()
    write_json(partial / "manifest.json", manifest)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)  # atomic: readers see no folder or a complete one
    return manifest


@dataclass
class _Preparation:
    plan: DataPlan
    folder: Path
    rejected: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    tokens: int = 0
    lengths: Lengths = field(default_factory=Lengths)
    checksums: dict[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        plan = self.plan
        encoder = Encoder(
            self.folder / "tokenizer", seq_len=plan.seq_len, cut=plan.on_long == "cut", verbatim=plan.verbatim, system=plan.system
        )
        files = {"data": list_inputs([plan.data])}
        if plan.validation_data is not None:
            files["validation_data"] = list_inputs([plan.validation_data])
        with (self.folder / "rejected.jsonl").open("wb") as rejected:
            writers = {split: _Writer(self.folder / f"{split}.arrow", paired=plan.paired) for split in SPLITS}
            for key, inputs_of_key in files.items():
                for record in read_records(inputs_of_key, self.checksums):
                    for row in self._rows_of(record):
                        tokens = row if isinstance(row, Refused) else encoder.encode(row)
                        if isinstance(tokens, Refused):
                            self._reject(record, tokens.reason, rejected)
                        else:
                            assert isinstance(row, Preference)
                            self._keep(record, tokens, writers[self._split(key, row)])
            for writer in writers.values():
                writer.close()
        if not self.rows["train"]:
            self._raise_empty()
        inputs = {
            key: [{**vars(file), "checksum": self.checksums[file.url]} for file in inputs_of_key]
            for key, inputs_of_key in files.items()
        }
        return self._manifest(inputs)

    def _rows_of(self, record: Record) -> Iterator[Preference | Refused]:
        if record.values is None:
            yield Refused(record.reason)
        elif self.plan.paired:
            yield pair_of(record.values)
        else:
            yield from labelled_of(record.values)

    def _split(self, key: str, row: Preference) -> str:
        """Choose the split by a hash of the prompt, so that all answers to a prompt are in one split."""
        if key == "validation_data":
            return "validation"
        if self.plan.validation_data is not None:
            return "train"
        return "validation" if is_held_out(row.prompt, self.plan.validation_fraction) else "train"

    def _reject(self, record: Record, reason: str, stream: IO[bytes]) -> None:
        if reason == TOO_LONG and self.plan.on_long == "error":
            raise DataError(
                f"{record.file}:{record.line}: a prompt with its answer is longer than seq_len={self.plan.seq_len} tokens; "
                "raise seq_len, or set on_long to drop or cut"
            )
        self.rejected[reason] += 1
        stream.write(orjson.dumps({"file": record.file, "line": record.line, "reason": reason}) + b"\n")

    def _keep(self, record: Record, tokens: Tokens, writer: "_Writer") -> None:
        writer.add(tokens, record.line)
        self.rows[writer.split] += 1
        self.cut += tokens.was_cut
        self.tokens += sum(len(tokens.prompt) + len(answer) for answer in tokens.answers)
        if self.plan.paired:
            self.lengths = self.lengths.plus(*map(len, tokens.answers))

    def _raise_empty(self) -> None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.most_common(4)) or "no record"
        expected = PAIRED if self.plan.paired else f"{UNPAIRED} or {PAIRED}"
        held = f", and {self.rows['validation']} held out" if self.rows["validation"] else ""
        raise DataError(
            f"data: {self.plan.data}: no record to train on ({reasons}{held}); a record is {expected}, text or messages"
        )

    def _manifest(self, files: dict[str, Any]) -> dict[str, Any]:
        return {
            "plan": vars(self.plan),
            "files": files,
            "rows": dict(self.rows),
            "cut": self.cut,
            "rejected": dict(sorted(self.rejected.items())),
            "tokens": self.tokens,
            "lengths": self.lengths.model_dump(),
            "hash": f"xxh3:{_hash_of([self.folder / f'{split}.arrow' for split in SPLITS])}",
        }


class _Writer:
    """Writer of one split, in record batches of ROWS_A_BATCH rows, so that the batch of a row is a division."""

    def __init__(self, path: Path, *, paired: bool) -> None:
        self.split, self.schema = path.stem, _SCHEMAS[paired]
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self.schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, tokens: Tokens, line: int) -> None:
        answers = dict(zip(("chosen", "rejected") if len(tokens.answers) == 2 else ("completion",), tokens.answers, strict=True))
        self._rows.append({"prompt": tokens.prompt, **answers, "label": tokens.label, "line": line})
        if len(self._rows) == ROWS_A_BATCH:
            self._flush()

    def _flush(self) -> None:
        rows = [{name: row[name] for name in self.schema.names} for row in self._rows]
        self._writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=self.schema))
        self._rows.clear()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
        self._sink.close()


def _hash_of(files: list[Path]) -> str:
    digest = xxhash.xxh3_128()
    for path in files:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def counts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the counts that a run's results report, as plain values."""
    return json.loads(json.dumps({key: manifest[key] for key in ("rows", "cut", "rejected")}))  # type: ignore[no-any-return]

"""The durable ledger of rollouts: generation requests, generated answers, and which of them were trained on.

rollouts/
  prompts.arrow                        the prompts as token ids, with their records
  held-out.arrow                       the held-out prompts, if there are any
  at-0000000128/                       a round: the rollouts of the step that starts with sample 128 of the run
    issued-0.0001-000000.arrow         what a group of ranks started to generate, at try 0
    0-0003.0001-000000.CHECKSUM.arrow  chunk 3 of try 0, generated and rewarded
    manifest.json                      the round is complete, and consists of these chunks
    used.json                          its update is part of the checkpoint of this step
    dropped.json                       it will not be trained on, with the reason
  validation-0000000100/               answers to held-out prompts after step 100; not trained on
  pruned.json                          counts of old, used rounds that were removed

As with checkpoints, nothing is changed in place: file names contain attempt and group, writers check the fence first, and a
manifest commits. A chunk is the unit of work lost by a kill. It is a function of (seed, prompt slot, sample) and of the policy,
on any rank, so that a round assembled from chunks of several attempts equals the round of an undisturbed run. A rollout is
`issued`, then `done`, and `used` as soon as a checkpoint contains its update: a run that is killed before resumes from the
checkpoint and trains on the same rollouts again, and on no others.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from ropewalk.cluster.fresh_reads import list_afresh, read_afresh, read_json_afresh
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.files import json_text, write_atomically

FOLDER, PROMPTS, MANIFEST, USED, DROPPED = "rollouts", "prompts.arrow", "manifest.json", "used.json", "dropped.json"
HELD_OUT, PRUNED = "held-out.arrow", "pruned.json"
_CHUNK = re.compile(r"(\d+)-(\d+)\.(\d+-\d+)\.([0-9a-f]{32})\.arrow")
_KEY = [
    # number of the prompt in the run: sample k of the run is sample k % group_size of slot k // group_size
    ("slot", pa.int64()),
    ("attempt", pa.int32()),  # of dynamic sampling
    ("sample", pa.int32()),  # in the group
    ("prompt", pa.int64()),  # its row in prompts.arrow
    ("policy_version", pa.int64()),  # the step whose weights generated it
]
ISSUED = pa.schema(_KEY)
ROLLOUTS = pa.schema(
    [
        *_KEY,
        ("tokens", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),  # of the tokens, at the temperature of sampling
        ("truncated", pa.bool_()),
        ("answer", pa.string()),
        ("rewards", pa.list_(pa.float64())),  # null if a reward has no value
        ("outcomes", pa.list_(pa.string())),  # ok, nothing, or the error of a reward
    ]
)


class ChunkName(NamedTuple):
    """The number of a chunk within a try (of dynamic sampling) of a round."""

    attempt: int
    number: int


def rollouts_folder(run: RunDir) -> Path:
    """Return the folder of a run's ledger."""
    return run.path / FOLDER


class Round:
    """The rollouts of one step in the files of the ledger. Only a process that passes the fence may write."""

    def __init__(self, run: RunDir, fence: Fence, position: int, *, held_out: bool = False) -> None:
        """Open the round of the samples from `position` on; with `held_out` the validation after that many steps."""
        self.position, self._fence = position, fence
        self.folder = rollouts_folder(run) / f"{'validation' if held_out else 'at'}-{position:010d}"
        self._who = f"{fence.attempt:04d}-{fence.group:06d}"

    def make(self) -> None:
        """Create the folder. Any rank may, before it writes."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def issue(self, attempt: int, rows: pa.Table) -> None:
        """Record the rollouts that are about to be generated at this try."""
        self._write(f"issued-{attempt}.{self._who}.arrow", arrow_bytes(rows), durable=False)

    def put(self, chunk: ChunkName, rows: pa.Table) -> tuple[str, bytes]:
        """Write a generated and rewarded chunk durably; returns the file's name and content."""
        raw = arrow_bytes(rows)
        name = f"{chunk.attempt}-{chunk.number:04d}.{self._who}.{xxhash.xxh3_128_hexdigest(raw)}.arrow"
        self._write(name, raw)
        return name, raw

    def names(self) -> list[str]:
        """List the files of chunks, intact or not."""
        return sorted(name for name in list_afresh(self.folder) if _CHUNK.fullmatch(name))

    def remove_damaged(self) -> None:
        """Remove chunks damaged by a power cut or a bad disk, so that they are generated again."""
        whole = {name for name, _ in self.chunks()}
        for name in self.names() if self.manifest() is None else ():
            if name not in whole and xxhash.xxh3_128_hexdigest(read_afresh(self.folder / name)) != name.split(".")[-2]:
                self._fence.check()
                (self.folder / name).unlink(missing_ok=True)

    def chunks(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each intact chunk: those of the manifest, else the first file of each."""
        manifest = self.manifest()
        names = manifest["chunks"] if manifest else sorted(list_afresh(self.folder))
        yielded: set[ChunkName] = set()
        for name in names:
            match = _CHUNK.fullmatch(name)
            if match is None or (chunk := parse_chunk_name(name)) in yielded:
                continue
            raw = read_afresh(self.folder / name)
            if xxhash.xxh3_128_hexdigest(raw) == match[4]:
                yielded.add(chunk)
                yield name, raw

    def commit(self, names: Sequence[str], step: int) -> None:
        """Complete the round: from now on it consists of these chunks, and is trained on by this step."""
        facts = {"position": self.position, "step": step, "chunks": list(names), "by": self._who}
        self._write(MANIFEST, json_text(facts).encode())

    def manifest(self) -> dict[str, Any] | None:
        """Read the manifest of the round; None while it is incomplete."""
        try:
            manifest: dict[str, Any] | None = read_json_afresh(self.folder / MANIFEST)
        except ValueError:  # truncated by a power cut
            return None
        return manifest

    def use(self, step: int) -> None:
        """Mark the round as used: a checkpoint of this step contains its update."""
        self._write(USED, json_text({"step": step, "by": self._who}).encode())

    def drop(self, reason: str) -> None:
        """Mark the round as dropped: it will not be trained on."""
        self._write(DROPPED, json_text({"reason": reason, "by": self._who}).encode())

    def remove(self) -> None:
        self._fence.check()
        shutil.rmtree(self.folder, ignore_errors=True)

    def withdraw(self) -> None:
        """Remove the marks `used` and `dropped`, after the run rolled back before the round."""
        for name in (USED, DROPPED):
            if (self.folder / name).exists():
                self._fence.check()
                (self.folder / name).unlink(missing_ok=True)

    @property
    def state(self) -> str:
        """One of `used`, `dropped`, `done` and `issued`."""
        for name, state in ((USED, "used"), (DROPPED, "dropped"), (MANIFEST, "done")):
            if (self.folder / name).is_file() and (self.folder / name).stat().st_size:
                return state
        return "issued"

    def _write(self, name: str, raw: bytes, *, durable: bool = True) -> None:
        self._fence.check()
        write_atomically(self.folder / name, raw, durable=durable)


def rounds(run: RunDir, fence: Fence) -> list[Round]:
    """List all rounds of the ledger, in the order of their samples."""
    names = sorted(list_afresh(rollouts_folder(run)))
    return [Round(run, fence, int(match[1])) for name in names if (match := re.fullmatch(r"at-(\d{10,})", name))]


def parse_chunk_name(name: str) -> ChunkName:
    """Parse the file name of a chunk."""
    match = _CHUNK.fullmatch(name)
    assert match is not None, name
    return ChunkName(int(match[1]), int(match[2]))


def update_marks(run: RunDir, fence: Fence, position: int, step: int) -> None:
    """Update the marks of all rounds to the checkpoint of this step, whose next sample is `position`."""
    for ledger_round in rounds(run, fence):
        if ledger_round.position >= position:
            ledger_round.withdraw()
        elif ledger_round.state == "done":
            ledger_round.use(step)


def prune(run: RunDir, fence: Fence, before: int) -> None:
    """Remove used or dropped rounds of samples before this position, and count them. Rank 0 calls it.

    The count is written first, with the position up to which it counts: after a kill the rest is removed uncounted.
    """
    old = [
        ledger_round
        for ledger_round in rounds(run, fence)
        if ledger_round.position < before and ledger_round.state in {"used", "dropped"}
    ]
    if not old:
        return
    path = rollouts_folder(run) / PRUNED
    counts = read_json_afresh(path) or {"before": 0, "rounds": 0, "rollouts": 0}
    fresh = [ledger_round for ledger_round in old if ledger_round.position >= counts["before"]]
    rollouts = counts["rollouts"] + sum(len(arrow_table(raw)) for ledger_round in fresh for _, raw in ledger_round.chunks())
    fence.check()
    write_atomically(path, json_text({"before": before, "rounds": counts["rounds"] + len(fresh), "rollouts": rollouts}))
    for ledger_round in old:
        ledger_round.remove()


def read_rollouts(run: RunDir) -> pa.Table:
    """Read the whole ledger as a table: the columns of ROLLOUTS, `position` of the round, `step` that trains on it, `state`.

    Rollouts that were issued and never generated have no tokens. With dynamic sampling, groups of a used round that were
    generated again are `dropped`.
    """
    fence = Fence(run, 1, 0)  # for reading alone
    tables = [table for ledger_round in rounds(run, fence) for table in _tables_of(ledger_round)]
    schema = ROLLOUTS.append(pa.field("position", pa.int64())).append(pa.field("step", pa.int64()))
    return pa.concat_tables(tables) if tables else schema.append(pa.field("state", pa.string())).empty_table()


def _tables_of(ledger_round: Round) -> Iterator[pa.Table]:
    manifest, generated = ledger_round.manifest(), set()
    step = manifest["step"] if manifest else None
    newest: dict[int, int] = {}
    parts = [arrow_table(raw) for _, raw in ledger_round.chunks()]
    for part in parts:
        for slot, attempt in zip(part["slot"].to_pylist(), part["attempt"].to_pylist(), strict=True):
            newest[slot] = max(attempt, newest.get(slot, 0))
    for part in parts:
        keys = list(zip(*(part[name].to_pylist() for name in ("slot", "attempt", "sample")), strict=True))
        generated.update(keys)
        states = [
            ledger_round.state if manifest and attempt == newest[slot] else "dropped" if manifest else "done"
            for slot, attempt, _ in keys
        ]
        yield _with(part, ledger_round.position, step, states)
    if manifest is None:
        for path in sorted(ledger_round.folder.glob("issued-*.arrow")):
            part = arrow_table(path.read_bytes())
            keys = list(zip(*(part[name].to_pylist() for name in ("slot", "attempt", "sample")), strict=True))
            fresh = part.filter(pa.array([key not in generated for key in keys], pa.bool_()))
            generated.update(keys)
            empty = [pa.nulls(len(fresh), field.type) for field in ROLLOUTS][len(_KEY) :]
            whole = pa.table([*fresh.columns, *empty], schema=ROLLOUTS)
            yield _with(whole, ledger_round.position, None, ["issued"] * len(fresh))


def _with(table: pa.Table, position: int, step: int | None, states: list[str]) -> pa.Table:
    rows = len(table)
    table = table.replace_schema_metadata(None)
    table = table.append_column("position", pa.array([position] * rows, pa.int64()))
    return table.append_column("step", pa.array([step] * rows, pa.int64())).append_column("state", pa.array(states, pa.string()))


def arrow_bytes(table: pa.Table) -> bytes:
    """Serialize a table as an Arrow file; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def arrow_table(raw: bytes) -> pa.Table:
    """Read the table of an Arrow file."""
    with pa.ipc.open_file(pa.BufferReader(raw)) as reader:
        return reader.read_all()

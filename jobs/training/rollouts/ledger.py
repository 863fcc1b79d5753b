"""The durable ledger of rollouts: what was asked of the policy, what it answered, and what has been learnt from.

rollouts/
  prompts.arrow                        the prompts as token ids, with their records
  held-out.arrow                       the same of held-out prompts, if there are any
  at-0000000128/                       the round: what the step learns that begins with sample 128 of the run
    issued-0.0001-000000.arrow         what a group of ranks set out to draw, at try 0
    0-0003.0001-000000.CHECKSUM.arrow  chunk 3 of try 0, drawn and rewarded
    manifest.json                      the round is complete, and consists of these chunks
    used.json                          its update is part of the checkpoint of this step
    dropped.json                       it will not be learnt from, and why
  validation-0000000100/               answers to held-out prompts after step 100; nothing is learnt from them
  pruned.json                          how much was removed again of what is used and was long ago

As with checkpoints, nothing is changed in place: whoever writes has a name of its own by attempt and group, checks the fence
first, and a manifest commits. A chunk is the unit of what a kill costs. It is a function of (seed, place, sample) and of the
policy, whoever draws it, so that a round which is put together of chunks of several attempts is the round of an undisturbed
run. A rollout is `issued`, then `done`, and `used` as soon as a checkpoint holds what was learnt from it: a run that is killed
before goes back to the checkpoint and learns from the same rollouts again, and from those alone.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
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
    (
        "slot",
        pa.int64(),
    ),  # the place of the prompt in the run: sample k of the run is sample k % group_size of slot k // group_size
    ("attempt", pa.int32()),  # of dynamic sampling
    ("sample", pa.int32()),  # in the group
    ("prompt", pa.int64()),  # its row in prompts.arrow
    ("policy_version", pa.int64()),  # the step whose weights drew it
]
ISSUED = pa.schema(_KEY)
ROLLOUTS = pa.schema(
    [
        *_KEY,
        ("tokens", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),  # of the tokens, at the temperature of sampling
        ("truncated", pa.bool_()),
        ("answer", pa.string()),
        ("rewards", pa.list_(pa.float64())),  # null where a reward has no value
        ("outcomes", pa.list_(pa.string())),  # ok, nothing, or why a reward failed
    ]
)


class ChunkName(NamedTuple):
    """Which chunk of a round: of one try of dynamic sampling."""

    attempt: int
    number: int


def rollouts_folder(run: RunDir) -> Path:
    """Where a run's ledger lies."""
    return run.path / FOLDER


class Round:
    """The rollouts of one step, in the files of the ledger. Only a process that the fence lets through may write."""

    def __init__(self, run: RunDir, fence: Fence, position: int, *, held_out: bool = False) -> None:
        """Of the samples from `position` on; or with `held_out` of the validation after so many steps."""
        self.position, self._fence = position, fence
        self.folder = rollouts_folder(run) / f"{'validation' if held_out else 'at'}-{position:010d}"
        self._who = f"{fence.attempt:04d}-{fence.group:06d}"

    def make(self) -> None:
        """Make the folder. Any rank may, before it writes."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def issue(self, attempt: int, rows: pa.Table) -> None:
        """Write down what is about to be drawn at this try."""
        self._write(f"issued-{attempt}.{self._who}.arrow", arrow_bytes(rows), durable=False)

    def put(self, chunk: ChunkName, rows: pa.Table) -> tuple[str, bytes]:
        """Write a chunk that is drawn and rewarded; returns its file's name and content when it is on the disk."""
        raw = arrow_bytes(rows)
        name = f"{chunk.attempt}-{chunk.number:04d}.{self._who}.{xxhash.xxh3_128_hexdigest(raw)}.arrow"
        self._write(name, raw)
        return name, raw

    def names(self) -> list[str]:
        """The files of chunks that lie there, whole or not."""
        return sorted(name for name in list_afresh(self.folder) if _CHUNK.fullmatch(name))

    def remove_damaged(self) -> None:
        """Remove chunks that a power cut or a bad disk has damaged: they are drawn again."""
        whole = {name for name, _ in self.chunks()}
        for name in self.names() if self.manifest() is None else ():
            if name not in whole and xxhash.xxh3_128_hexdigest(read_afresh(self.folder / name)) != name.split(".")[-2]:
                self._fence.check()
                (self.folder / name).unlink(missing_ok=True)

    def chunks(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents of all chunks that are whole: of the manifest, or as they lie there; the first of each."""
        manifest = self.manifest()
        names = manifest["chunks"] if manifest else sorted(list_afresh(self.folder))
        seen: set[ChunkName] = set()
        for name in names:
            found = _CHUNK.fullmatch(name)
            if found is None or (chunk := chunk_of(name)) in seen:
                continue
            raw = read_afresh(self.folder / name)
            if xxhash.xxh3_128_hexdigest(raw) == found[4]:
                seen.add(chunk)
                yield name, raw

    def commit(self, names: Sequence[str], step: int) -> None:
        """The round is complete, and learnt by this step: from here on it consists of these chunks, whatever else lies there."""
        facts = {"position": self.position, "step": step, "chunks": list(names), "by": self._who}
        self._write(MANIFEST, json_text(facts).encode())

    def manifest(self) -> dict[str, Any] | None:
        """What the round consists of; None while it is not complete."""
        try:
            found: dict[str, Any] | None = read_json_afresh(self.folder / MANIFEST)
        except ValueError:  # a power cut has left half of it
            return None
        return found

    def use(self, step: int) -> None:
        """A checkpoint of this step holds what was learnt from the round."""
        self._write(USED, json_text({"step": step, "by": self._who}).encode())

    def drop(self, reason: str) -> None:
        """The round will not be learnt from."""
        self._write(DROPPED, json_text({"reason": reason, "by": self._who}).encode())

    def remove(self) -> None:
        """Remove the round and all that was drawn for it."""
        self._fence.check()
        shutil.rmtree(self.folder, ignore_errors=True)

    def withdraw(self) -> None:
        """The run stands before the round again: it is neither used nor dropped."""
        for name in (USED, DROPPED):
            if (self.folder / name).exists():
                self._fence.check()
                (self.folder / name).unlink(missing_ok=True)

    @property
    def state(self) -> str:
        """`used`, `dropped`, `done` or `issued`."""
        for name, state in ((USED, "used"), (DROPPED, "dropped"), (MANIFEST, "done")):
            if (self.folder / name).is_file() and (self.folder / name).stat().st_size:
                return state
        return "issued"

    def _write(self, name: str, raw: bytes, *, durable: bool = True) -> None:
        self._fence.check()
        write_atomically(self.folder / name, raw, durable=durable)


def rounds(run: RunDir, fence: Fence) -> list[Round]:
    """All rounds that the ledger has, in the order of their samples."""
    names = sorted(list_afresh(rollouts_folder(run)))
    return [Round(run, fence, int(found[1])) for name in names if (found := re.fullmatch(r"at-(\d{10,})", name))]


def chunk_of(name: str) -> ChunkName:
    """Which chunk a file holds."""
    found = _CHUNK.fullmatch(name)
    assert found is not None, name
    return ChunkName(int(found[1]), int(found[2]))


def settle(run: RunDir, fence: Fence, position: int, step: int) -> None:
    """Bring the marks of all rounds in line with the checkpoint of this step, whose next sample is `position`."""
    for one in rounds(run, fence):
        if one.position >= position:
            one.withdraw()
        elif one.state == "done":
            one.use(step)


def prune(run: RunDir, fence: Fence, before: int) -> None:
    """Remove rounds of samples before this one that are used or dropped, and keep their number. Rank 0 calls it.

    The number is written first, with the position up to which it counts: whoever is killed then removes the rest uncounted.
    """
    old = [one for one in rounds(run, fence) if one.position < before and one.state in {"used", "dropped"}]
    if not old:
        return
    path = rollouts_folder(run) / PRUNED
    told = read_json_afresh(path) or {"before": 0, "rounds": 0, "rollouts": 0}
    fresh = [one for one in old if one.position >= told["before"]]
    rollouts = told["rollouts"] + sum(len(arrow_table(raw)) for one in fresh for _, raw in one.chunks())
    fence.check()
    write_atomically(path, json_text({"before": before, "rounds": told["rounds"] + len(fresh), "rollouts": rollouts}))
    for one in old:
        one.remove()


def read_rollouts(run: RunDir) -> pa.Table:
    """The whole ledger as a table: the columns of ROLLOUTS, `position` of the round, `step` that learns it, and `state`.

    What was issued and never drawn has no tokens. With dynamic sampling, the groups of a used round that were drawn again
    are `dropped`.
    """
    fence = Fence(run, 1, 0)  # for reading alone
    tables = [table for one in rounds(run, fence) for table in _tables_of(one)]
    schema = ROLLOUTS.append(pa.field("position", pa.int64())).append(pa.field("step", pa.int64()))
    return pa.concat_tables(tables) if tables else schema.append(pa.field("state", pa.string())).empty_table()


def _tables_of(one: Round) -> Iterator[pa.Table]:
    manifest, drawn = one.manifest(), set()
    step = manifest["step"] if manifest else None
    newest: dict[int, int] = {}
    parts = [arrow_table(raw) for _, raw in one.chunks()]
    for part in parts:
        for slot, attempt in zip(part["slot"].to_pylist(), part["attempt"].to_pylist(), strict=True):
            newest[slot] = max(attempt, newest.get(slot, 0))
    for part in parts:
        keys = list(zip(*(part[name].to_pylist() for name in ("slot", "attempt", "sample")), strict=True))
        drawn.update(keys)
        states = [
            one.state if manifest and attempt == newest[slot] else "dropped" if manifest else "done" for slot, attempt, _ in keys
        ]
        yield _with(part, one.position, step, states)
    if manifest is None:
        for path in sorted(one.folder.glob("issued-*.arrow")):
            part = arrow_table(path.read_bytes())
            keys = list(zip(*(part[name].to_pylist() for name in ("slot", "attempt", "sample")), strict=True))
            fresh = part.filter(pa.array([key not in drawn for key in keys], pa.bool_()))
            drawn.update(keys)
            empty = [pa.nulls(len(fresh), field.type) for field in ROLLOUTS][len(_KEY) :]
            whole = pa.table([*fresh.columns, *empty], schema=ROLLOUTS)
            yield _with(whole, one.position, None, ["issued"] * len(fresh))


def _with(table: pa.Table, position: int, step: int | None, states: list[str]) -> pa.Table:
    rows = len(table)
    table = table.replace_schema_metadata(None)
    table = table.append_column("position", pa.array([position] * rows, pa.int64()))
    return table.append_column("step", pa.array([step] * rows, pa.int64())).append_column("state", pa.array(states, pa.string()))


def arrow_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow file; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def arrow_table(raw: bytes) -> pa.Table:
    """The table of an Arrow file."""
    with pa.ipc.open_file(pa.BufferReader(raw)) as reader:
        return reader.read_all()


# called by whoever commits a checkpoint: (position, step)
Settle = Callable[[int, int], None]

"""Make conversations and preferences of what a serving run has captured: the same bytes however often it is begun anew."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from ropewalk.cluster.config import absolute
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json, write_atomically, write_json
from ropewalk.datapipe.chat.records import UnitNotes, read_records
from ropewalk.datapipe.filters.decontamination.index import NgramIndex
from ropewalk.datapipe.filters.decontamination.items import evaluation_files, read_items
from ropewalk.datapipe.inputs.files import list_inputs, plan_units
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.serving.collect.config import CollectConfig, DecontaminateConfig, ReplayConfig
from ropewalk.jobs.serving.feedback.read import Captured, exchanges
from ropewalk.jobs.serving.feedback.review.export import judgements_by_item, reviewed_conversations, reviewed_pairs
from ropewalk.jobs.serving.feedback.review.judgements import Judgement
from ropewalk.jobs.serving.feedback.training_data import answer_of, prompt_of, to_conversations, to_pairs
from ropewalk.jobs.training.loop.model_record import find_source_run

CONVERSATIONS, PAIRS, MANIFEST = "data/conversations.jsonl", "data/pairs.jsonl", "data/manifest.json"
_UNTIL = "until.json"  # the moment at which the first attempt looked
_UNIT_MIB = 64
_MOST_TOLD = 50

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What is made of exchanges; what is left out is counted by reason."""

    conversations: list[Record]
    pairs: list[Record]
    counts: Counter[str]


def main(context: JobContext) -> dict[str, object]:
    """Write `data/` into the run; returns the paths of its files, and how many records of each kind there are."""
    config, run = context.config(CollectConfig), context.run
    beside = run.path.parent / config.watch
    watched = find_source_run(run, config.watch, "watch") if beside.is_dir() else find_run(config.watch)
    until = config.until if config.until is not None else _settled(run.path / _UNTIL)
    found = learn_from(watched, since=config.since, until=until, unrated=config.unrated)
    conversations = _newest(_distinct(found.conversations), config.most)
    pairs = found.pairs
    dropped: list[dict[str, str]] = []
    if config.decontaminate is not None:
        conversations, dropped = without_items(conversations, config.decontaminate)
        pairs, more = without_items(pairs, config.decontaminate)
        dropped += more
    new = len(conversations)
    replayed = _replay(config.replay, new, config.seed) if config.replay is not None and new else []
    counts = {**found.counts, "contaminated": len(dropped), "new": new, "replay": len(replayed), "pairs": len(pairs)}
    context.fence.check()
    (run.path / CONVERSATIONS).parent.mkdir(exist_ok=True)
    files = {name: _lines(rows) for name, rows in ((CONVERSATIONS, [*conversations, *replayed]), (PAIRS, pairs))}
    for name, text in files.items():
        write_atomically(run.path / name, text)
    hashes = {name: hashlib.sha256(text).hexdigest() for name, text in files.items()}
    manifest = {"watch": watched.id, "since": config.since, "until": until, "counts": counts, "sha256": hashes}
    write_json(run.path / MANIFEST, {**manifest, "dropped": dropped[:_MOST_TOLD]})
    context.run.event("collected", **{key.replace(" ", "_"): value for key, value in counts.items()})
    return {"conversations": CONVERSATIONS, "pairs": PAIRS, "manifest": MANIFEST, "counts": counts, "until": until}


def _settled(path: Path) -> float:
    """The moment up to which all attempts look."""
    if (known := read_json(path)) is None:
        known = {"until": time.time()}
        write_json(path, known)
    return float(known["until"])


def _distinct(records: Iterable[Record]) -> list[Record]:
    """Each conversation once, as it was had last."""
    found = {xxhash.xxh3_128_hexdigest(json.dumps(one["messages"], sort_keys=True).encode()): one for one in records}
    return list(found.values())


def _newest(records: list[Record], most: int | None) -> list[Record]:
    return records if most is None else sorted(records, key=lambda one: (one["time"], one["id"]))[-most:]


def without_items(records: Sequence[Record], config: DecontaminateConfig) -> tuple[list[Record], list[dict[str, str]]]:
    """The records that hold no evaluation item, and what the others hold."""
    items = list(read_items(evaluation_files(tuple(map(absolute, config.against)))))
    index = NgramIndex.build([item.texts for item in items], config.ngram)
    if not records:
        return [], []
    overlaps = index.overlaps(TextBatch.of([text_of(record) for record in records]), first_only=True)
    held = {overlap.text: items[overlap.item].name for overlap in overlaps}
    dropped = [{"id": str(records[number]["id"]), "item": name} for number, name in sorted(held.items())]
    return [record for number, record in enumerate(records) if number not in held], dropped


def text_of(record: Record) -> str:
    """All that is said in a conversation or a pair."""
    messages = [message for key in ("prompt", "messages", "chosen", "rejected") for message in record.get(key) or ()]
    return "\n".join(str(message.get("content") or "") for message in messages)


def _replay(config: ReplayConfig, new: int, seed: int) -> list[Record]:
    """So many conversations of before that they are the wanted share of all: the same ones for the same seed and files."""
    wanted = round(new * config.share / (1 - config.share))
    ranked = (
        sorted(
            (xxhash.xxh3_64_intdigest(f"{seed} {number} {place}".encode()), number, place, record)
            for number, path in enumerate(config.data)
            for place, record in enumerate(_records(path))
        )
        if wanted
        else []
    )
    return [{**record, "id": f"replay-{record.get('id', f'{number}:{place}')}"} for _, number, place, record in ranked[:wanted]]


def _records(path: str) -> Iterator[dict[str, Any]]:
    for unit in plan_units(list_inputs([path]), _UNIT_MIB):
        yield from (record for _, record, _ in read_records(unit, UnitNotes()) if record is not None)


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False, sort_keys=True)}\n" for record in records).encode()


def learn_from(run: RunDir, *, since: float | None, until: float, unrated: bool) -> Learnt:
    """Conversations and pairs of a serving run's exchanges, of what users said of them, and of what reviewers have judged.

    All of it is of before `until`; an exchange counts where it, or anything said of it, is of `since` or later.
    """
    judged = judgements_by_item(run, until)
    found = [
        one
        for one in exchanges(run.path, until=until, said_until=until)
        if since is None or _last_change(one, judged.get(one.id, ())) >= since
    ]
    origin = {one.id: one for one in found}
    conversations, pairs = to_conversations(found), to_pairs(found)
    reviewed = [record for record in reviewed_conversations(run, until).records if record["id"] in origin]
    better = {record["id"] for record in reviewed}  # a reviewer's word stands before a user's
    others = [*conversations.records, *(_unrated(found) if unrated else ())]
    words = Counter({"exchanges": len(found), "reviewed": len(better)})
    preferred = [*pairs.records, *(record for record in reviewed_pairs(run, until).records if record["id"] in origin)]
    return Learnt(
        conversations=[
            *(_with_origin(record, origin[record["id"]]) for record in others if record["id"] not in better),
            *(_with_origin(record, origin[record["id"]], "reviewed") for record in reviewed),
        ],
        pairs=[_with_origin(record, origin[record["id"]]) for record in preferred],
        counts=words + Counter(_said(one) for one in found) + conversations.left_out,
    )


def _last_change(one: Captured, judgements: Sequence[Judgement]) -> float:
    """The time of the exchange, or of the last thing that was said of it."""
    return max([one.time, *(rating.time for rating in one.ratings), *(judgement.time for judgement in judgements)])


def _said(one: Captured) -> str:
    if one.correction is not None:
        return "corrected"
    return {1: "liked", -1: "disliked", None: "not judged"}[one.rating]


def _unrated(found: list[Captured]) -> list[Record]:
    """Conversations of which nobody said anything."""
    made = []
    for one in found:
        asked, answer = prompt_of(one), answer_of(one)
        if not one.ratings and isinstance(asked, list) and isinstance(answer, list):
            made.append({"messages": [*asked, *answer], **({"tools": one.tools} if one.tools else {}), "id": one.id})
    return made


def _with_origin(record: Record, one: Captured, why: str = "") -> Record:
    ratings = [rating.id for rating in one.ratings]
    return {**record, "version": one.version, "time": one.time, "ratings": ratings, "why": why or _said(one)}

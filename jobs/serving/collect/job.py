"""Training data from a serving run's feedback: conversations and preference pairs, reproducible across restarts."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from ropewalk.cluster.input_paths import absolute
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
from ropewalk.jobs.serving.collect.files import CONVERSATIONS, MANIFEST, PAIRS
from ropewalk.jobs.serving.feedback.read import CapturedExchange, exchanges
from ropewalk.jobs.serving.feedback.retention import enforce_retention
from ropewalk.jobs.serving.feedback.review.export import judgements_by_item, reviewed_conversations, reviewed_pairs
from ropewalk.jobs.serving.feedback.review.judgements import Judgement
from ropewalk.jobs.serving.feedback.training_data import answer_of, prompt_of, to_conversations, to_pairs
from ropewalk.jobs.training.loop.architecture.model_record import find_source_run

_UNTIL = "until.json"  # time of the first attempt, which all attempts use as their end
_UNIT_MIB = 64
_MAX_LISTED = 50

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FeedbackData:
    """Conversations and preference pairs, and the number of exchanges by kind and by reason for skipping."""

    conversations: list[Record]
    pairs: list[Record]
    counts: Counter[str]


def main(context: JobContext) -> dict[str, object]:
    """Write `data/` into the run and return the paths of its files and the number of records of each kind."""
    config, run = context.config(CollectConfig), context.run
    sibling = run.path.parent / config.watch
    watched = find_source_run(run, config.watch, "watch") if sibling.is_dir() else find_run(config.watch)
    enforce_retention(watched)
    until = config.until if config.until is not None else _recorded_time(run.path / _UNTIL)
    feedback = collect_feedback(watched, since=config.since, until=until, unrated=config.unrated)
    conversations = _newest(_distinct(feedback.conversations), config.most, config.most_per_client)
    pairs = _newest(feedback.pairs, None, config.most_per_client)
    dropped: list[dict[str, str]] = []
    if config.decontaminate is not None:
        conversations, dropped = drop_contaminated(conversations, config.decontaminate)
        pairs, dropped_pairs = drop_contaminated(pairs, config.decontaminate)
        dropped += dropped_pairs
    new = len(conversations)
    replayed = _replay(config.replay, new, config.seed) if config.replay is not None and new else []
    counts = {**feedback.counts, "contaminated": len(dropped), "new": new, "replay": len(replayed), "pairs": len(pairs)}
    context.fence.check()
    (run.path / CONVERSATIONS).parent.mkdir(exist_ok=True)
    files = {name: _lines(rows) for name, rows in ((CONVERSATIONS, [*conversations, *replayed]), (PAIRS, pairs))}
    for name, text in files.items():
        write_atomically(run.path / name, text)
    hashes = {name: hashlib.sha256(text).hexdigest() for name, text in files.items()}
    manifest = {"watch": watched.id, "since": config.since, "until": until, "counts": counts, "sha256": hashes}
    write_json(run.path / MANIFEST, {**manifest, "dropped": dropped[:_MAX_LISTED]})
    context.run.event("collected", **{key.replace(" ", "_"): value for key, value in counts.items()})
    return {"conversations": CONVERSATIONS, "pairs": PAIRS, "manifest": MANIFEST, "counts": counts, "until": until}


def _recorded_time(path: Path) -> float:
    """Return the time in the file, which is created with the current time by the first attempt."""
    if (record := read_json(path)) is None:
        record = {"until": time.time()}
        write_json(path, record)
    return float(record["until"])


def _distinct(records: Iterable[Record]) -> list[Record]:
    """Keep each conversation once, in its newest version."""
    by_content = {
        xxhash.xxh3_128_hexdigest(json.dumps(record["messages"], sort_keys=True).encode()): record for record in records
    }
    return list(by_content.values())


def _newest(records: Iterable[Record], most: int | None, most_per_client: int | None) -> list[Record]:
    """Return the newest records by time, of each named client at most `most_per_client`."""
    by_client: Counter[str] = Counter()
    newest: list[Record] = []
    for record in sorted(records, key=lambda record: (record["time"], record["id"]), reverse=True):
        client = record["client"]
        by_client[client] += client is not None
        if most_per_client is None or by_client[client] <= most_per_client:
            newest.append(record)
    return newest[:most][::-1]


def drop_contaminated(records: Sequence[Record], config: DecontaminateConfig) -> tuple[list[Record], list[dict[str, str]]]:
    """Return the records without evaluation items, and the id and item of each dropped one."""
    items = list(read_items(evaluation_files(tuple(map(absolute, config.against)))))
    index = NgramIndex.build([item.texts for item in items], config.ngram)
    if not records:
        return [], []
    overlaps = index.overlaps(TextBatch.of([text_of(record) for record in records]), first_only=True)
    contaminated = {overlap.text: items[overlap.item].name for overlap in overlaps}
    dropped = [{"id": str(records[number]["id"]), "item": name} for number, name in sorted(contaminated.items())]
    return [record for number, record in enumerate(records) if number not in contaminated], dropped


def text_of(record: Record) -> str:
    """Concatenate all texts of a conversation or a pair."""
    messages = [message for key in ("prompt", "messages", "chosen", "rejected") for message in record.get(key) or ()]
    return "\n".join(str(message.get("content") or "") for message in messages)


def _replay(config: ReplayConfig, new: int, seed: int) -> list[Record]:
    """Draw enough earlier conversations for the configured share; the same ones for the same seed and files."""
    num_wanted = round(new * config.share / (1 - config.share))
    ranked = (
        sorted(
            (xxhash.xxh3_64_intdigest(f"{seed} {number} {row}".encode()), number, row, record)
            for number, path in enumerate(config.data)
            for row, record in enumerate(_records(path))
        )
        if num_wanted
        else []
    )
    return [{**record, "id": f"replay-{record.get('id', f'{number}:{row}')}"} for _, number, row, record in ranked[:num_wanted]]


def _records(path: str) -> Iterator[dict[str, Any]]:
    for unit in plan_units(list_inputs([path]), _UNIT_MIB):
        yield from (record for _, record, _ in read_records(unit, UnitNotes()) if record is not None)


def _lines(records: Iterable[Record]) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False, sort_keys=True)}\n" for record in records).encode()


def collect_feedback(run: RunDir, *, since: float | None, until: float, unrated: bool) -> FeedbackData:
    """Build conversations and pairs from a serving run's exchanges, user ratings and reviews before `until`.

    With `since`, only exchanges that were made, rated or reviewed at that time or later.
    """
    reviews = judgements_by_item(run, until)
    totals: Counter[str] = Counter()
    captured: list[CapturedExchange] = []
    for exchange in exchanges(run.path, until=until, rated_until=until):
        judgements = reviews.get(exchange.id, ())
        if since is None or _last_change(exchange, judgements) >= since:
            totals.update(["exchanges", _opinion(exchange)])
            if exchange.ratings or judgements or unrated:
                captured.append(exchange)
    captured.sort(key=lambda exchange: (exchange.time, exchange.id))
    by_id = {exchange.id: exchange for exchange in captured}
    conversations, pairs = to_conversations(captured), to_pairs(captured)
    reviewed = [record for record in reviewed_conversations(run, until).records if record["id"] in by_id]
    reviewed_ids = {record["id"] for record in reviewed}  # a review overrides user ratings
    other_records = [*conversations.records, *(_unrated(captured) if unrated else ())]
    totals["reviewed"] = len(reviewed_ids)
    all_pairs = [*pairs.records, *(record for record in reviewed_pairs(run, until).records if record["id"] in by_id)]
    return FeedbackData(
        conversations=[
            *(_with_origin(record, by_id[record["id"]]) for record in other_records if record["id"] not in reviewed_ids),
            *(_with_origin(record, by_id[record["id"]], "reviewed") for record in reviewed),
        ],
        pairs=[_with_origin(record, by_id[record["id"]]) for record in all_pairs],
        counts=totals + conversations.left_out,
    )


def _last_change(exchange: CapturedExchange, judgements: Sequence[Judgement]) -> float:
    """Return the time of the exchange, or of its newest rating or review."""
    return max([exchange.time, *(rating.time for rating in exchange.ratings), *(judgement.time for judgement in judgements)])


def _opinion(exchange: CapturedExchange) -> str:
    if exchange.correction is not None:
        return "corrected"
    return {1: "liked", -1: "disliked", None: "not judged"}[exchange.rating]


def _unrated(captured: list[CapturedExchange]) -> list[Record]:
    """Return the conversations without any rating."""
    records = []
    for exchange in captured:
        prompt, answer = prompt_of(exchange), answer_of(exchange)
        if not exchange.ratings and isinstance(prompt, list) and isinstance(answer, list):
            records.append(
                {"messages": [*prompt, *answer], **({"tools": exchange.tools} if exchange.tools else {}), "id": exchange.id}
            )
    return records


def _with_origin(record: Record, exchange: CapturedExchange, reason: str = "") -> Record:
    ratings = [rating.id for rating in exchange.ratings]
    about = {
        "version": exchange.version,
        "time": exchange.time,
        "client": None if reason else exchange.teacher,
        "ratings": ratings,
    }
    return {**record, **about, "why": reason or _opinion(exchange)}

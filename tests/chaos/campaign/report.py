"""Figures of a campaign, each beside its goal."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ropewalk.jobs.serving.feedback.records import answers_store, exchanges_store
from ropewalk.jobs.serving.feedback.store import Store
from tests.chaos.campaign.faults import Faults
from tests.chaos.campaign.load import Exchange
from tests.chaos.campaign.server import Server

PARTS = ("gateway", "controller", "writer")
MOST_GROWTH = 1.05
ROOM_SECONDS = 5.0  # around a full disk: what was just finished may not be on it yet, and the writer retries once a second


@dataclass(frozen=True)
class Sample:
    """Memory and open files of a part, some seconds after a burst."""

    part: str
    second: float  # of the campaign
    pid: int
    private_mib: float  # without mapped files, of which the writer's come and go
    files: int


def sample(server: Server, second: float) -> list[Sample]:
    """Measure all parts that run."""
    samples = []
    for part in PARTS:
        process = server.part(part)
        if process is not None:
            with process.oneshot():
                memory = process.memory_info()
                private_mib = (memory.rss - memory.shared) / 2**20
                samples.append(Sample(part, second, process.pid, private_mib, process.num_fds()))
    return samples


def make_report(
    server: Server, faults: Faults, exchanges: Sequence[Exchange], samples: Sequence[Sample], reference: float
) -> dict[str, Any]:
    """Return all figures of an ended run; `missed` names the goals that were not reached."""
    failed = [each for each in exchanges if each.problem]
    excused = [each for each in failed if any(each.opened <= moment <= each.ended for moment in faults.gateway_kills)]
    unexcused = [each for each in failed if each not in excused]
    ended = {each.id: round(each.ended, 1) for each in exchanges}  # on the clock of the notes
    due = [each.id for each in exchanges if not each.problem and _had_room(each, faults)]
    stored = {store.folder.name: _stored(store) for store in (exchanges_store(server.feedback), answers_store(server.feedback))}
    lost = {name: [number for number in due if not ids[number]] for name, ids in stored.items()}
    twice = {name: [number for number, count in ids.items() if count > 1] for name, ids in stored.items()}
    growth = [_growth(part, samples, reference) for part in PARTS]
    tracebacks = {name: text.count("Traceback (most recent") for name, text in server.log_text() if "Traceback" in text}
    report: dict[str, Any] = {
        "requests": len(exchanges),
        "failed": len(unexcused),
        "failures": [f"{each.ended:.1f} {each.problem}" for each in unexcused[:50]],
        "failed_by_a_killed_gateway": len(excused),
        "exchanges_due": len(due),
        "lost": {name: len(ids) for name, ids in lost.items()},
        "lost_ids": {name: {number: ended[number] for number in ids[:50]} for name, ids in lost.items()},
        "recorded_twice": {name: len(ids) for name, ids in twice.items()},
        "growth": [entry for entry in growth if entry is not None],
        "tracebacks": tracebacks,
        "faults": dict(sorted(faults.counts.items())),
        "skipped": server.skipped,
        "notes": faults.notes,
        "samples": [asdict(each) for each in samples],
    }
    flat = all(entry["memory_growth"] <= MOST_GROWTH and entry["files_growth"] <= MOST_GROWTH for entry in report["growth"])
    goals = {
        "no request fails": not unexcused,
        "no exchange is lost": not any(map(len, lost.values())),
        "none is recorded twice": not any(map(len, twice.values())),
        "memory and open files are flat": flat,
        "no traceback in the gateway's log": not any("gateway" in name for name in tracebacks),
        "all faults ran": set(faults.counts) == set(faults.kinds()),
    }
    report["missed"] = [name for name, reached in goals.items() if not reached]
    return report


def _had_room(exchange: Exchange, faults: Faults) -> bool:
    return not any(begin - ROOM_SECONDS <= exchange.ended <= end + ROOM_SECONDS for begin, end in faults.without_room)


def _stored(store: Store) -> Counter[str]:
    """Count the ids in the shards of a store, of which each should occur once."""
    store.roll()
    ids: Counter[str] = Counter()
    for shard in store.shards():
        with pa.memory_map(str(shard)) as source:
            ids.update(pa.ipc.open_file(source).read_all()["id"].to_pylist())
    return ids


def _growth(part: str, samples: Sequence[Sample], reference: float) -> dict[str, Any] | None:
    """Compare the last sample of a part's last process with that taken `reference` seconds into its life.

    By then every kind of fault has struck it.
    """
    of_part = [each for each in samples if each.part == part]
    if len(of_part) < 2:
        return None
    last = of_part[-1]
    life = [each for each in of_part if each.pid == last.pid]
    first = next((each for each in life if each.second >= life[0].second + reference), life[0])
    figures = {"part": part, "from_second": round(first.second), "to_second": round(last.second)}
    figures |= {"private_mib": [round(first.private_mib, 1), round(last.private_mib, 1)], "files": [first.files, last.files]}
    return {**figures, "memory_growth": last.private_mib / first.private_mib, "files_growth": last.files / first.files}


def as_text(report: dict[str, Any]) -> str:
    """Return a report for people."""
    lines = [
        f"requests                      {report['requests']}",
        f"failed (goal 0)               {report['failed']}",
        f"failed by a killed gateway    {report['failed_by_a_killed_gateway']}",
        f"lost of {report['exchanges_due']} exchanges (goal 0) {report['lost']}",
        f"recorded twice (goal 0)       {report['recorded_twice']}",
    ]
    for entry in report["growth"]:
        (before, after), (few, many) = entry["private_mib"], entry["files"]
        span = f"second {entry['from_second']} to {entry['to_second']}"
        lines.append(f"{entry['part']:12s} {before} → {after} MiB, {few} → {many} open files, {span} (goal: within 5%)")
    lines += [f"tracebacks (gateway: goal 0)  {report['tracebacks'] or 0}", f"faults                        {report['faults']}"]
    lines += [f"skipped                       {name}: {reason}" for name, reason in report["skipped"].items()]
    lines += [f"failure                       {failure}" for failure in report["failures"][:20]]
    return "\n".join([*lines, f"missed goals: {', '.join(report['missed']) or 'none'}"])


def write_report(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "campaign.json").write_text(json.dumps(report, indent=1))
    (folder / "campaign.txt").write_text(as_text(report) + "\n")

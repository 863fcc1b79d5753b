"""Descriptions of hung ranks, grouped by the location in which they hang, and of slow ones."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ropewalk.cluster.text import counted


def join_hangs(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the events that the nodes of a group record for the same hang; the order of events is preserved."""
    joined: list[dict[str, Any]] = []
    hangs: dict[tuple[Any, Any], dict[str, Any]] = {}
    for event in events:
        key = (event.get("attempt"), event.get("group"))
        if event.get("event") != "ranks_hung":
            joined.append(event)
        elif key in hangs:
            hang = hangs[key]
            hang["ranks"] += event["ranks"]
            hang["seconds"] = max(hang["seconds"], event["seconds"])
            hang["step"] = max(hang["step"], event["step"])
        else:
            hangs[key] = {**event, "ranks": [*event["ranks"]]}
            joined.append(hangs[key])
    return joined


def describe_locations(ranks: list[dict[str, Any]]) -> str:
    """Describe where ranks hang, such as `3 ranks in all_reduce (...), rank 1 in read (...)`, most frequent location first."""
    by_location: dict[str, list[int]] = defaultdict(list)
    for rank in ranks:
        stopped = "stopped by a signal, " if rank["state"] == "stopped" else ""
        phase = "" if rank["phase"] == "step" else f", {rank['phase']}"
        by_location[f"{stopped}in {rank['where']}{phase}"].append(int(rank["rank"]))
    groups = sorted(by_location.items(), key=lambda group: (-len(group[1]), group[1]))
    return ", ".join(f"{_name_ranks(sorted(members))} {location}" for location, members in groups)


def describe_activities(ranks: list[dict[str, Any]]) -> str:
    """Describe what slow ranks do, such as `rank 1 computes in read (...), data`."""
    return ", ".join(f"rank {rank['rank']} {rank['activity']} in {rank['where']}, {rank['phase']}" for rank in ranks)


def _name_ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else counted(len(ranks), "rank")

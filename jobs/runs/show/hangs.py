"""Ranks that hung, in words: where each of them stood, grouped by place."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ropewalk.cluster.text import counted


def join_hangs(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the events of one hang, which each node of the group records, into one; the order of events stays."""
    joined: list[dict[str, Any]] = []
    hangs: dict[tuple[Any, Any], dict[str, Any]] = {}
    for event in events:
        key = (event.get("attempt"), event.get("group"))
        if event.get("event") != "ranks_hung":
            joined.append(event)
        elif key in hangs:
            known = hangs[key]
            known["ranks"] = [*known["ranks"], *event["ranks"]]
            known["seconds"] = max(known["seconds"], event["seconds"])
            known["step"] = max(known["step"], event["step"])
        else:
            hangs[key] = dict(event)
            joined.append(hangs[key])
    return joined


def places(ranks: list[dict[str, Any]]) -> str:
    """`3 ranks in all_reduce (...), rank 1 in read (...)`: the place with the most ranks first."""
    found: dict[str, list[int]] = defaultdict(list)
    for rank in ranks:
        stopped = "stopped by a signal, " if rank["state"] == "stopped" else ""
        phase = "" if rank["phase"] == "step" else f", {rank['phase']}"
        found[f"{stopped}in {rank['where']}{phase}"].append(int(rank["rank"]))
    groups = sorted(found.items(), key=lambda group: (-len(group[1]), group[1]))
    return ", ".join(f"{_who(sorted(members))} {words}" for words, members in groups)


def _who(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else counted(len(ranks), "rank")

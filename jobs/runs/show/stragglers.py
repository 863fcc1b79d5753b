"""Stragglers of a run: the ranks that its newest group names as slow."""

from typing import Any

from ropewalk.cluster.run.directory import RunDir

KEYS = ("rank", "host", "share", "seconds", "phase", "cause", "step", "rate_without")


def stragglers(run: RunDir) -> list[dict[str, Any]]:
    """Return the slow ranks of the newest group of the run, as the event that named each."""
    named: dict[int, dict[str, Any]] = {}
    for event in run.read_events():
        if event["event"] in ("group_formed", "ranks_hung"):
            named.clear()
        elif event["event"] == "straggler":
            named[event["rank"]] = {key: event.get(key) for key in KEYS}
        elif event["event"] == "straggler_ended":
            named.pop(event["rank"], None)
    return list(named.values())


def describe_stragglers(ranks: list[dict[str, Any]]) -> str:
    """Describe slow ranks, and the rate of the run without them; empty if there are none."""
    descriptions = (
        f"rank {each['rank']} on {each['host']} is {each['share']:.0%} slower than the others in {phase_words(each['phase'])}"
        + (f" ({each['cause']})" if each["cause"] else "")
        for each in ranks
    )
    without = "it" if len(ranks) == 1 else "them"
    return (
        f"{', '.join(descriptions)}; without {without} the run is {ranks[-1]['rate_without']:.2f} times as fast" if ranks else ""
    )


def phase_words(phase: str) -> str:
    """Return a phase of a step in words."""
    return phase.replace("_", " and ")

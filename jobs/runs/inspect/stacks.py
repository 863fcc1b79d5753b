"""Stacks of all processes of a run: equal ones merged, rare ones first, and only where they differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_GROUPS = 20  # on a page
MOST_NAMES = 8
ENTRY = ("run_entry", "ropewalk/cluster/engines/entry.py")  # function and file of the frame that calls a job

FrameLine = tuple[str, str, int]  # function, file, line


@dataclass(frozen=True)
class StackGroup:
    """Processes whose main threads are at the same place."""

    frames: tuple[FrameLine, ...]  # innermost first; empty: `text` instead
    text: str  # the process's own dump, or the reason why there is no stack
    processes: list[Mapping[str, Any]]

    @cached_property
    def ranks(self) -> list[int]:
        return sorted(process["rank"] for process in self.processes if process["rank"] is not None)

    @property
    def names(self) -> str:
        """Phrase for the processes, such as `ranks 0, 1, 3`."""
        others = [process for process in self.processes if process["rank"] is None]
        parts = []
        if self.ranks:
            more = f" and {len(self.ranks) - MOST_NAMES:,} more" if len(self.ranks) > MOST_NAMES else ""
            parts.append(f"rank{'s' if len(self.ranks) > 1 else ''} {', '.join(map(str, self.ranks[:MOST_NAMES]))}{more}")
        if others:
            pid = others[0]["pid"]
            parts.append(f"{len(others)} processes, one of them {pid}" if len(others) > 1 else f"process {pid}")
        return " and ".join(parts)


def merge_stacks(processes: Iterable[Mapping[str, Any]]) -> list[StackGroup]:
    """Group processes by the stack of their main thread, the smallest group first."""
    groups: dict[tuple[tuple[FrameLine, ...], str], list[Mapping[str, Any]]] = {}
    for process in processes:
        main = next((thread for thread in process["threads"] if thread["main"]), None)
        frames = _below_entry(tuple(map(tuple, main["frames"]))) if main else ()
        groups.setdefault((frames, "" if frames else process["text"]), []).append(process)
    merged = [StackGroup(frames, text, members) for (frames, text), members in groups.items()]
    return sorted(merged, key=lambda group: (len(group.processes), group.ranks[:1]))


def _below_entry(frames: tuple[FrameLine, ...]) -> tuple[FrameLine, ...]:
    """Leave out the frames of a rank that started its job, and those of imports, as tracebacks do."""
    below = next((frames[:number] for number, frame in enumerate(frames) if frame[:2] == ENTRY), frames)
    return tuple(frame for frame in below if not frame[1].startswith("<frozen importlib")) or below


def common_frames(groups: Sequence[StackGroup]) -> int:
    """Return the number of outermost frames that all groups share."""
    stacks = [group.frames[::-1] for group in groups if group.frames]
    if len(stacks) < 2:
        return 0
    shortest = min(map(len, stacks))
    return next((depth for depth in range(shortest) if len({stack[depth] for stack in stacks}) > 1), shortest)


def programs_only(processes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out ranks of ours that only wait for a program of the user's, which is their descendant."""
    programs = [process for process in processes if not process["is_rank"]]
    return programs or list(processes)


def stacks_page(groups: Sequence[StackGroup], *, threads: bool = False) -> "RenderableType":
    """Render merged stacks; `threads`: all threads of one process of each group."""
    from rich.console import Group
    from rich.text import Text

    number = sum(len(group.processes) for group in groups)
    differ = "all at the same place" if len(groups) == 1 else f"at {len(groups):,} places, the rarest first"
    shared = 0 if threads else common_frames(groups)
    parts: list[RenderableType] = [Text(f"{counted(number, 'stack')}, {differ}", style="bold")]
    for group in groups[:MOST_GROUPS]:
        first = group.processes[0]
        phases = sorted({f"{process['phase']}, step {process['step']}" for process in group.processes if process["phase"]})
        facts = "".join(f"; {text}" for text in (*phases[:2], "" if first["state"] == "running" else first["state"]) if text)
        parts += [Text(), Text.assemble((group.names, "bold"), facts)]
        if group.text:
            parts.append(Text(f"    {group.text.strip()}"))
        elif threads:
            parts += [line for thread in first["threads"] for line in _thread_lines(thread)]
        else:
            parts += [Text(_line(frame)) for frame in group.frames[: len(group.frames) - shared]]
    if len(groups) > MOST_GROUPS:
        parts += [Text(), Text(f"and {len(groups) - MOST_GROUPS:,} more places: --json has all")]
    if shared:
        frames = next(group.frames for group in groups if group.frames)[-shared:]
        parts += [Text(), Text("all of them below", style="dim"), *(Text(_line(frame), style="dim") for frame in frames)]
    return Group(*parts)


def _thread_lines(thread: Mapping[str, Any]) -> "list[RenderableType]":
    from rich.text import Text

    return [Text(f"  thread {thread['name']}"), *(Text(_line(frame)) for frame in thread["frames"])]


def _line(frame: Sequence[Any]) -> str:
    function, file, line = frame
    return f"    {function} ({file}:{line})"

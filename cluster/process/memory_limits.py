"""Memory limit of this process's control group, and the processes that the kernel has killed there for lack of memory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_bytes() -> int:
    """Return the memory that the processes of this control group can use, together."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [int(text) for text in _read("memory.max", "memory.limit_in_bytes") if text.strip().isdecimal()]
    return min([machine, *limits])


def kills() -> int:
    """Return how many processes of this control group the kernel has killed for lack of memory."""
    for text in _read("memory.events", "memory.oom_control"):
        for line in text.splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdecimal():
                return int(count)
    return 0


def _read(unified: str, separate: str) -> Iterator[str]:
    """Yield the contents of a file of this control group and of those above it: of version 2, or of version 1."""
    lines = _OWN.read_text().splitlines() if _OWN.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (_GROUPS / "memory", separate) if controllers else (_GROUPS, unified)
        folder = root / path.lstrip("/")
        for each in [folder, *folder.parents]:
            if each.is_relative_to(root):
                with suppress(OSError):  # of version 1 if version 2 has it; or above the root of a container
                    yield (each / name).read_text()

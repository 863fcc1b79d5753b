"""The Python stacks of other processes: by py-spy, or where that is forbidden, by the process itself on a signal."""

import ctypes
import faulthandler
import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SPY_SECONDS = 0.6
SIGNAL_SECONDS = 0.3
LOOK_SECONDS = 0.02
STACKS_SIGNAL = signal.SIGRTMIN + 1  # NCCL, schedulers and programs use the others
_PR_SET_PTRACER = 0x59616D61
_OWN = "cluster/"  # threads of ours wait there in every rank
_LIBRARIES = ("torch/", "transformers/", "numpy/", "pyarrow/", "fsspec/", "s3fs/", "aiobotocore/", "safetensors/")


@dataclass(frozen=True)
class Frame:
    """One call of a stack."""

    function: str
    file: str  # relative to the folder it was imported from
    line: int
    library: bool = False

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True)
class Thread:
    """One thread, with its frames from the innermost on."""

    name: str
    frames: list[Frame]
    main: bool = False

    @property
    def own(self) -> Frame | None:
        """The innermost frame of code that is no library's."""
        return next((frame for frame in self.frames if not frame.library), None)

    @property
    def place(self) -> str:
        """The function that the thread is in, and the line of our own code that called it."""
        innermost, own = self.frames[0], self.own
        return str(innermost) if own in (None, innermost) else f"{innermost.function} in {own}"


@dataclass(frozen=True)
class Stack:
    """The stacks of one process, or why there are none."""

    pid: int
    state: str  # the kernel's word, such as sleeping or stopped
    threads: list[Thread] = field(default_factory=list)
    text: str = ""  # instead of threads: what the process itself wrote, or why there is no stack

    def place(self, *, waits_for_data: bool = False) -> str:
        """Say in a few words where the main thread is; if it waits for data, also where the thread is that should bring it."""
        main = next((thread for thread in self.threads if thread.main), None)
        if main is None or not main.frames:
            return _told_place(self.text)
        others = [thread for thread in self.threads if not thread.main] if waits_for_data else []
        found = [(thread, thread.own) for thread in others]
        beside = [f"its {thread.name}: {thread.place}" for thread, own in found if own and not own.file.startswith(_OWN)]
        return ", ".join([main.place, *beside])


def stacks_file(stop_flag: Path, local_rank: int) -> Path:
    """Return the file on the node's own disk to which a rank writes its stacks when it is asked."""
    return stop_flag.with_name(f"stacks-{local_rank}")


def answer(tracer: int, path: Path) -> None:
    """Let the process `tracer` and its descendants read this one's stacks, also where Yama allows that to ancestors alone.

    On STACKS_SIGNAL this process writes them to the file `path` itself, also while Python stands still.
    """
    # where there is no Yama it is refused, and not needed
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(tracer), 0, 0, 0)
    # open as long as the process
    faulthandler.register(STACKS_SIGNAL, file=path.open("wb", buffering=0), all_threads=True)


def take_stacks(pids: Mapping[int, int], spare: Mapping[int, Path]) -> dict[int, Stack]:
    """Take the stacks of processes by rank, all at the same time; to its file in `spare` each writes on a signal."""
    with ThreadPoolExecutor(max(1, len(pids))) as pool:
        return dict(zip(pids, pool.map(lambda rank: _take(pids[rank], spare[rank]), pids), strict=True))


def _take(pid: int, spare: Path) -> Stack:
    try:
        state = psutil.Process(pid).status()
    except psutil.Error:
        return Stack(pid, "gone", text="it is gone")
    problem = "py-spy is not installed"
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    # one that is stopped already can only be read as it is; of one that runs that may fail
    for words in (["--nonblocking"], []) if spy else ():
        try:
            done = subprocess.run(
                [str(spy), "dump", "--json", "--pid", str(pid), *words], capture_output=True, timeout=SPY_SECONDS, check=True
            )
            return Stack(pid, state, _threads(json.loads(done.stdout), pid))
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
            problem = f"py-spy: {said[-1] if said else error}"
    if state == psutil.STATUS_STOPPED:
        return Stack(pid, state, text=f"no stack: {problem}; and a stopped process cannot write its own")
    text = _asked(pid, spare)
    return Stack(pid, state, text=text or f"no stack: {problem}; and the process did not write its own")


def _threads(raw: list[dict[str, Any]], pid: int) -> list[Thread]:
    found = [
        Thread(
            name=str(thread.get("thread_name") or thread["thread_id"]),
            frames=[_frame(**{key: frame[key] for key in ("name", "filename", "line")}) for frame in thread["frames"]],
            main=thread.get("os_thread_id") == pid or thread.get("thread_name") == "MainThread",
        )
        for thread in raw
    ]
    return sorted(found, key=lambda thread: not thread.main)


def _frame(name: str, filename: str, line: int) -> Frame:
    places = [place.rstrip("/") for place in sys.path if place and filename.startswith(f"{place.rstrip('/')}/")]
    file = filename[len(max(places, key=len)) + 1 :] if places else filename
    python = sysconfig.get_path("stdlib")
    standard = filename.startswith((f"{python}/", "<")) and "-packages/" not in filename
    return Frame(name, file, int(line), standard or file.startswith(_LIBRARIES))


def _asked(pid: int, path: Path) -> str:
    """Signal a process to write its stacks, and return them; empty if it does not."""
    try:
        before = path.stat().st_size
        psutil.Process(pid).send_signal(STACKS_SIGNAL)
        deadline, size = time.monotonic() + SIGNAL_SECONDS, -1
        while time.monotonic() < deadline and not (before < path.stat().st_size == size):
            size = path.stat().st_size
            time.sleep(LOOK_SECONDS)
        return path.read_bytes()[before:].decode(errors="replace")
    except (OSError, psutil.Error):
        return ""


def write_stacks(folder: Path, stacks: Mapping[int, Stack], phases: Mapping[int, str]) -> None:
    """Write the stacks to one file a rank, for people."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank, stack in stacks.items():
        lines = [f"rank {rank}, process {stack.pid} ({stack.state}), phase: {phases.get(rank, 'starting')}", ""]
        lines += [stack.text] if stack.text else []
        for thread in stack.threads:
            lines += [f"thread {thread.name}", *(f"    {frame}" for frame in thread.frames), ""]
        # not synced to the disk: the ranks that hang are not ended before this is done
        (folder / f"rank-{rank}.txt").write_text("\n".join(lines).strip() + "\n")


def _told_place(text: str) -> str:
    """Return the innermost frame of the main thread in what a process wrote of itself, or the text, if it has none."""
    lines = [line.strip() for line in text.splitlines()]
    threads = [number for number, line in enumerate(lines) if "most recent call first" in line]
    if not threads:
        return text
    # the main thread comes last
    return lines[threads[-1] + 1] if threads[-1] + 1 < len(lines) else text

"""Python stacks of other processes, from py-spy, or written by the process itself on a signal if py-spy is not permitted."""

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
POLL_SECONDS = 0.02
STACKS_SIGNAL = signal.SIGRTMIN + 1  # not used by NCCL, schedulers or programs
_PR_SET_PTRACER = 0x59616D61
_CLUSTER = "ropewalk/cluster/"  # our threads that wait in every rank
_DUMPED = "most recent call first"  # in every dump of faulthandler
_COLLECTIVES = ("torch/distributed/", "ropewalk/sharding/group.py", "ropewalk/sharding/host_copy.py")
_DISPATCH, _TENSORS = ("torch/_ops.py", "torch/utils/"), "torch/distributed/tensor/"  # in the stacks of computations, too
_LIBRARIES = ("torch/", "transformers/", "numpy/", "pyarrow/", "fsspec/", "s3fs/", "aiobotocore/", "safetensors/")


@dataclass(frozen=True)
class Frame:
    """A call on a stack."""

    function: str
    file: str  # relative to the folder it was imported from
    line: int
    library: bool = False

    def __str__(self) -> str:
        return f"{self.function} ({self.file}:{self.line})"


@dataclass(frozen=True)
class Thread:
    """A thread with its frames, innermost first."""

    name: str
    frames: list[Frame]
    main: bool = False

    @property
    def user_frame(self) -> Frame | None:
        """Innermost frame outside of libraries."""
        return next((frame for frame in self.frames if not frame.library), None)

    @property
    def location(self) -> str:
        """The current function, and the line outside of libraries that called it."""
        innermost, user_frame = self.frames[0], self.user_frame
        return str(innermost) if user_frame in (None, innermost) else f"{innermost.function} in {user_frame}"


@dataclass(frozen=True)
class Stack:
    """Stacks of all threads of a process, or a text instead."""

    pid: int
    state: str  # the kernel's process state, such as sleeping or stopped
    threads: list[Thread] = field(default_factory=list)
    text: str = ""  # if there are no threads: the process's own dump, or the reason why there is no stack

    @property
    def readable(self) -> bool:
        """True if the stack could be taken."""
        return bool(self.threads) or _DUMPED in self.text

    @property
    def frames(self) -> object:
        """Frames of all threads, to be compared with those of another moment."""
        return self.threads or self.text

    @property
    def main_frames(self) -> object:
        """Frames of the main thread, to be compared with those of another moment."""
        return next((thread.frames for thread in self.threads if thread.main), _dumped_location(self.text))

    @property
    def waits_for_ranks(self) -> bool:
        """True if the main thread is in a collective, or waits for the result of one."""
        main = next((thread for thread in self.threads if thread.main), None)
        if main is None:
            return any(f"/{file}" in _dumped_location(self.text) for file in _COLLECTIVES)
        file = next((frame.file for frame in main.frames if not frame.file.startswith(_DISPATCH)), "")
        return file.startswith(_COLLECTIVES) and not file.startswith(_TENSORS)

    def location(self, *, waits_for_data: bool = False) -> str:
        """Describe the location of the main thread; with `waits_for_data` also the locations of threads that may load data."""
        main = next((thread for thread in self.threads if thread.main), None)
        if main is None or not main.frames:
            return _dumped_location(self.text)
        others = [thread for thread in self.threads if not thread.main] if waits_for_data else []
        frames = [(thread, thread.user_frame) for thread in others]
        loaders = [f"its {t.name}: {t.location}" for t, frame in frames if frame and not frame.file.startswith(_CLUSTER)]
        return ", ".join([main.location, *loaders])


def stacks_file(stop_flag: Path, local_rank: int) -> Path:
    """Return the file on the node's local disk to which a rank dumps its stacks on STACKS_SIGNAL."""
    return stop_flag.with_name(f"stacks-{local_rank}")


def allow_stack_dumps(tracer: int, path: Path) -> None:
    """Let the process `tracer` and its descendants read this process's stacks, even if Yama restricts ptrace to ancestors.

    Also register a handler of STACKS_SIGNAL that dumps the stacks to the file `path`, even while the interpreter is blocked.
    """
    # without Yama the call fails, and is not needed
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(tracer), 0, 0, 0)
    # the file stays open as long as the process lives
    faulthandler.register(STACKS_SIGNAL, file=path.open("wb", buffering=0), all_threads=True)


def take_stacks(pids: Mapping[int, int], spare: Mapping[int, Path]) -> dict[int, Stack]:
    """Take the stacks of all processes in parallel, by rank. `spare`: the files to which they can dump their stacks."""
    with ThreadPoolExecutor(max(1, len(pids))) as pool:
        return dict(zip(pids, pool.map(lambda rank: take_stack(pids[rank], spare[rank]), pids), strict=True))


def take_stack(pid: int, spare: Path | None, spy_seconds: float = SPY_SECONDS) -> Stack:
    """Take the stack of a process. `spare`: the file to which it can dump its stack, if any."""
    try:
        state = psutil.Process(pid).status()
    except psutil.Error:
        return Stack(pid, "gone", text="the process is gone")
    problem = "py-spy is not installed"
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    # a stopped process can only be read with --nonblocking, which may fail for a running one
    for options in (["--nonblocking"], []) if spy else ():
        try:
            dump = subprocess.run(
                [str(spy), "dump", "--json", "--pid", str(pid), *options], capture_output=True, timeout=spy_seconds, check=True
            )
            return Stack(pid, state, _threads(json.loads(dump.stdout), pid))
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            errors = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
            problem = f"py-spy: {errors[-1] if errors else error}"
    if state == psutil.STATUS_STOPPED:
        return Stack(pid, state, text=f"no stack: {problem}, and a stopped process cannot dump its stacks")
    text = _request_dump(pid, spare) if spare is not None else ""
    return Stack(pid, state, text=text or f"no stack: {problem}, and the process did not dump its stacks")


def _threads(raw: list[dict[str, Any]], pid: int) -> list[Thread]:
    threads = [
        Thread(
            name=str(thread.get("thread_name") or thread["thread_id"]),
            frames=[_frame(**{key: frame[key] for key in ("name", "filename", "line")}) for frame in thread["frames"]],
            main=thread.get("os_thread_id") == pid or thread.get("thread_name") == "MainThread",
        )
        for thread in raw
    ]
    return sorted(threads, key=lambda thread: not thread.main)


def _frame(name: str, filename: str, line: int) -> Frame:
    folders = [folder.rstrip("/") for folder in sys.path if folder and filename.startswith(f"{folder.rstrip('/')}/")]
    file = filename[len(max(folders, key=len)) + 1 :] if folders else filename
    python = sysconfig.get_path("stdlib")
    standard = filename.startswith((f"{python}/", "<")) and "-packages/" not in filename
    return Frame(name, file, int(line), standard or file.startswith(_LIBRARIES))


def _request_dump(pid: int, path: Path) -> str:
    """Signal a process to dump its stacks, and return the dump; empty if there is none in time."""
    try:
        before = path.stat().st_size
        psutil.Process(pid).send_signal(STACKS_SIGNAL)
        deadline, size = time.monotonic() + SIGNAL_SECONDS, -1
        while time.monotonic() < deadline and not (before < path.stat().st_size == size):
            size = path.stat().st_size
            time.sleep(POLL_SECONDS)
        return path.read_bytes()[before:].decode(errors="replace")
    except (OSError, psutil.Error):
        return ""


def write_stacks(path: Path, stacks: Mapping[int, Stack], phases: Mapping[int, str]) -> None:
    """Write the stacks of a node's ranks for people, equal ones once."""
    ranks_of: dict[str, list[str]] = {}
    for rank, stack in stacks.items():
        lines = [stack.text] if stack.text else []
        for thread in stack.threads:
            lines += [f"thread {thread.name}", *(f"    {frame}" for frame in thread.frames), ""]
        heading = f"rank {rank}, process {stack.pid} ({stack.state}), phase: {phases.get(rank, 'starting')}"
        ranks_of.setdefault("\n".join(lines).strip(), []).append(heading)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not synced to disk, since the hung ranks are killed only after this
    path.write_text("\n\n".join("\n".join([*headings, "", text]) for text, headings in ranks_of.items()) + "\n")


def _dumped_location(text: str) -> str:
    """Return the innermost frame of the main thread in faulthandler's dump, or the whole text if it has no frames."""
    lines = [line.strip() for line in text.splitlines()]
    threads = [number for number, line in enumerate(lines) if _DUMPED in line]
    if not threads:
        return text
    # faulthandler writes the main thread last
    return lines[threads[-1] + 1] if threads[-1] + 1 < len(lines) else text

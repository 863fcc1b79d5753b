"""Secrets planted in a run, and the search for them in files and processes."""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.secrets.store import FileStore
from tests.patience import Patience, until

NAME, LINES_NAME = "PLANTED_TOKEN", "PLANTED_KEY"
# of this process alone: the same test on another backend may run beside it
TOKEN, FIRST, SECOND = (secrets.token_hex(5) for _ in range(3))
SECRETS = {NAME: f"planted-{TOKEN}-value", LINES_NAME: f"-----BEGIN KEY-----\nplanted-{FIRST}\nplanted-{SECOND}\n--END--"}
NEEDLES = [text.encode() for text in (TOKEN, FIRST, SECOND)]
PROGRAM = f"""
import os, pathlib, subprocess, sys, time
token, key = os.environ[{NAME!r}], os.environ[{LINES_NAME!r}]
print("whole", token, flush=True)
sys.stdout.write("parts " + token[:12])
sys.stdout.flush()
time.sleep(0.2)
print(token[12:], flush=True)
print(key, repr(key), flush=True)
subprocess.run(["env"], check=True)
folder = pathlib.Path(os.environ["ROPEWALK_CHECKPOINTS"])
(folder / f"ready-{{os.environ.get('RANK', 0)}}").touch()
while not (folder / "go").exists():
    time.sleep(0.05)
raise RuntimeError(f"{{token}} is refused")
"""


def plant(cluster: str) -> None:
    for name, value in SECRETS.items():
        FileStore.of_cluster(cluster).set(name, value)


def look_while_running(run: RunDir, ranks: int) -> None:
    """Wait until the program has printed its secrets, look at all processes, and let it fail."""
    until(lambda: len(list(run.checkpoints.glob("ready-*"))) == ranks, Patience.RUN)
    assert list(holders("cmdline")) == []
    processes = list(holders("environ"))
    assert processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a child of the program may end meanwhile
            line = " ".join(process.cmdline())
            assert not [name for name in ("cluster.agent", "supervisor", "coordinator", "pod_main") if name in line]
            assert any("cluster.agent" in " ".join(each.cmdline()) for each in process.parents()), line
    (run.checkpoints / "go").touch()


def holders(file: str) -> Iterator[psutil.Process]:
    """Yield the processes in whose command line or environment a secret is."""
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            data = Path(f"/proc/{process.pid}/{file}").read_bytes()
            if process.pid != os.getpid() and any(needle in data for needle in NEEDLES):
                yield process


def found(roots: Iterable[Path], store: Path | None = None) -> list[str]:
    """Return the files below `roots`, except in the store, that contain a secret."""
    files = []
    for root in roots:
        for path in (Path(folder) / name for folder, _, names in os.walk(root) for name in names):  # others may delete folders
            if path.is_file() and not path.is_symlink() and (store is None or not path.is_relative_to(store)):
                with suppress(FileNotFoundError, PermissionError):
                    if any(needle in path.read_bytes() for needle in NEEDLES):
                        files.append(str(path))
    return files


def check_log(text: str) -> None:
    assert f"whole ***{NAME}***\n" in text
    assert f"parts ***{NAME}***\n" in text
    assert f"{NAME}=***{NAME}***\n" in text, "the program's own child prints its environment"
    assert f"RuntimeError: ***{NAME}*** is refused" in text
    assert f"***{LINES_NAME}***" in text

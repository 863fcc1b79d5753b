"""Programs that are forked from a process that has imported torch: they cannot tell that no interpreter was started for them."""

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from ropewalk.jobs.orchestration.command import forked
from ropewalk.jobs.orchestration.command.forked import Script, forkable
from ropewalk.jobs.orchestration.command.program import Program, Stops
from ropewalk.jobs.orchestration.command.script import imports_of, script_of

TELLS = """
import atexit, json, logging, multiprocessing, os, random, signal, sys, threading
def later():
    print("the thread is waited for")
print(json.dumps({
    "argv": sys.argv,
    "path": [place for place in sys.path if "finder" not in place],
    "file": __file__,
    "name": __name__,
    "main": sys.modules["__main__"].__dict__ is globals(),
    "folder": os.getcwd(),
    "environment": {name: os.environ[name] for name in sorted(os.environ) if name in ("GIVEN", "PATH", "ABSENT")},
    "process": [multiprocessing.current_process().name, multiprocessing.parent_process() is None],
    "method": multiprocessing.get_start_method(),
    "own temporary folder": "tempdir" in multiprocessing.process.current_process()._config,
    "logging": [len(logging.root.handlers), logging.root.level],
    "signals": [str(signal.getsignal(word)) for word in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)],
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": len(threading.enumerate()),
    "session": os.getsid(0) == os.getpid(),
    "descriptors": sorted(os.listdir("/proc/self/fd"))[:3],
}), flush=True)
atexit.register(print, "and this is the end")
threading.Timer(0.2, later).start()
if sys.argv[1:] == ["fail"]:
    raise ValueError("as it was written")
sys.exit(int(sys.argv[1]))
"""


SETS = (
    'os.environ["HF_HUB_OFFLINE"] = "1"',
    "environ['OMP_NUM_THREADS']= str(4)",
    'os.environ.update(HF_ENDPOINT="http://127.0.0.1:1")',
    'os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "x")',
    'os.environ.pop("TRANSFORMERS_OFFLINE", None)',
    'del os.environ["HF_HOME"]',
    'os.environ[name] = "1"',
    'os.environ[f"HF_{name}"] = "1"',
    'os.putenv("OMP_NUM_THREADS", "1")',
    'os.environ |= {"HF_HOME": "/scratch"}',
    "load_dotenv()",
)
HARMLESS = (
    'rank = int(os.environ["RANK"])',
    'if os.environ["HF_HOME"] == "/scratch" or os.environ.get("HF_TOKEN"):',
    'os.environ["WANDB_PROJECT"] = "x"',
    'os.environ.setdefault("MASTER_ADDR", "localhost")',
)


class Pipe:
    """Reads all that a program prints."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._write

    def started(self) -> None:
        os.close(self._write)

    def text(self) -> str:
        with os.fdopen(self._read) as stream:
            return stream.read()


def ran(words: list[str], folder: Path, *, fork: bool) -> tuple[int, str]:
    output = Pipe()
    program = Program(words, str(folder), {**os.environ, "GIVEN": "1"}, output, fork=fork)
    text = output.text()
    return program.wait(Stops([], "TERM")), text


def threads_of_a_child() -> int:
    """The threads of a process that was forked from this one: some libraries, such as telemetry's, start theirs again there."""
    place = Pipe()
    if (child := os.fork()) == 0:
        os.write(place.fileno(), str(len(threading.enumerate())).encode())
        os._exit(0)
    place.started()
    os.waitpid(child, 0)
    return int(place.text())


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process counts as one that has imported torch."""
    monkeypatch.setattr(forked, "LIBRARY", "json")


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("argument", ["0", "85", "fail"])
@pytest.mark.parametrize("words", [["told.py"], ["-m", "told"]])
def test_a_forked_program_cannot_tell(tmp_path: Path, argument: str, words: list[str]) -> None:
    (tmp_path / "told.py").write_text(TELLS)
    command = [sys.executable, *words, argument]
    assert forkable(command, str(tmp_path), os.environ) is not None
    (code, text), (forked_code, forked_text) = (ran(command, tmp_path, fork=fork) for fork in (False, True))
    first, forked_first = (json.loads(words.splitlines()[0]) for words in (text, forked_text))
    assert forked_first == {**first, "threads": threads_of_a_child()}
    assert (forked_code, forked_text.splitlines()[-2:]) == (code, text.splitlines()[-2:])
    if argument == "fail" and words == ["told.py"]:
        assert forked_text.splitlines()[1:] == text.splitlines()[1:], "the traceback is its own"


@pytest.mark.usefixtures("loaded")
def test_what_an_interpreter_would_do_differently_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, script = str(tmp_path), tmp_path / "train.py"
    script.write_text("")
    words = [sys.executable, "train.py", "--lr", "1"]
    assert forkable(words, place, os.environ) == Script("train.py", ("--lr", "1"), is_module=False, place=place)
    for other in ([sys.executable, "-O", "train.py"], ["/usr/bin/env", "python", "train.py"], [sys.executable, "absent.py"]):
        assert forkable(other, place, os.environ) is None
    for name in ("OMP_NUM_THREADS", "PYTHONPATH", "LD_PRELOAD", "TORCH_LOGS", "HF_HOME"):
        assert forkable(words, place, {**os.environ, name: "7"}) is None
    for line in SETS:
        script.write_text(f"import os\n{line}\nimport transformers\n")
        assert forkable(words, place, os.environ) is None, line
    script.write_text("import site_settings\n")
    (tmp_path / "site_settings.py").write_text(SETS[0])
    assert forkable(words, place, os.environ) is None, "what it imports sets it"
    assert forkable([sys.executable, "-m", "site_settings"], place, os.environ) is None
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__main__.py").write_text("from . import absent\nfrom .settings import x\n")
    assert forkable([sys.executable, "-m", "package"], place, os.environ) is not None
    (tmp_path / "package/settings.py").write_text(SETS[0])
    assert forkable([sys.executable, "-m", "package"], place, os.environ) is None, "a module beside it sets it"
    script.write_text("\n".join(HARMLESS))
    assert forkable(words, place, os.environ) is not None
    (tmp_path / "json.py").write_text("")
    assert forkable(words, place, os.environ) is None, "it would import its own json, and has another one"
    (tmp_path / "json.py").unlink()
    monkeypatch.setattr(forked, "LIBRARY", "nothing_that_is_loaded")
    assert forkable(words, place, os.environ) is None


def test_commands_of_python_and_what_they_import() -> None:
    assert script_of(["python3", "-u", "-m", "lab.train", "x"]) == ("lab.train", ("x",), True)
    assert script_of(["python", "train.py"]) == ("train.py", (), False)
    assert script_of(["bash", "-c", "python train.py"]) is None
    assert script_of(["python", "-c", "print()"]) is None
    text = "import torch\nfrom torch.distributed.fsdp import fully_shard\nif x:\n    import transformers\n"
    assert imports_of(text) == ["torch.distributed.fsdp", "torch._dynamo"]
    assert imports_of("import json") == []

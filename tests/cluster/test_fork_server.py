"""A process that forks supervisors: what they are and what becomes of them without it."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen, run

import psutil
import pytest

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.fork_server import FORK_SERVER_VARIABLE, ask_fork_server, start_fork_server
from ropewalk.cluster.process.scratch import OWNER
from ropewalk.cluster.spec import RunState
from tests.cluster.conftest import ToyRun
from tests.patience import Patience, until

Start = Callable[..., ToyRun]


@pytest.fixture
def fork_server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Popen[bytes]]:
    folder = tmp_path_factory.mktemp("t")
    process = start_fork_server(
        folder / "s", ["ropewalk.cluster.backends.local.supervisor_main", "ropewalk.cluster.agent.agent"], folder / "log"
    )
    until((folder / "s").exists)
    monkeypatch.setenv(FORK_SERVER_VARIABLE, str(folder / "s"))
    yield process
    process.kill()
    process.wait()


@pytest.mark.soak(
    "two runs, one from a cold start; test_what_is_forked_is_as_if_it_had_been_started has forks, and so do all tests of"
    " local runs"
)
def test_a_supervisor_is_forked_and_outlives_its_template(toy: Start, fork_server: Popen[bytes]) -> None:
    run = toy("tick", "process", steps=30)
    assert run.supervisor().ppid() == fork_server.pid
    run.reach(3)
    fork_server.kill()
    fork_server.wait()
    assert run.finish().state is RunState.SUCCEEDED
    assert run.steps() == list(range(1, 31))
    assert toy("place", "process").finish().state is RunState.SUCCEEDED, "without it a supervisor is started anew"


def test_what_is_forked_is_as_if_it_had_been_started(
    toy: Start, fork_server: Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLD", "later")
    run = toy("tick", "process", steps=20)
    run.reach(1)
    supervisor = run.supervisor()
    assert os.getsid(supervisor.pid) == supervisor.pid
    assert str(run.run.path) in " ".join(supervisor.cmdline()), "whoever looks for processes of the run finds it"
    rank = psutil.Process(run.rank_pid(0))
    assert (rank.environ()["TOLD"], rank.cwd()) == ("later", os.getcwd())
    assert {Path(file.path).name for file in supervisor.open_files()} <= {"supervisor.log", OWNER}
    assert supervisor.net_connections("unix") == [], "its fork_server's socket is not its own"
    assert run.finish().state is RunState.SUCCEEDED


def test_modules_are_found_where_the_asker_has_them(fork_server: Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import sys\ndef main() -> None:\n    print('told', *sys.argv[1:])\n    sys.exit(3)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    output = tmp_path / "out"
    ask_fork_server(os.environ[FORK_SERVER_VARIABLE], module_command("told", "a", "b"), environment, output)
    until(lambda: output.exists() and output.read_text() == "told a b\n", Patience.SIGNAL)


FORK = """
import os, sys
from pathlib import Path
from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.process.forking import fork_program
sys.exit(fork_program(module_command("told"), os.environ, Path("out")).wait())
"""


def test_a_child_has_its_parents_environment_and_collects_no_garbage_of_its_imports(tmp_path: Path) -> None:
    program = "import gc, os\ndef main() -> None:\n    print(os.environ['TOLD'] if gc.get_freeze_count() > 10_000 else 'no')\n"
    (tmp_path / "told.py").write_text(program)
    run([sys.executable, "-c", FORK], cwd=tmp_path, env={**os.environ, "TOLD": "yes", "PYTHONPATH": "."}, check=True)
    assert (tmp_path / "out").read_text() == "yes\n"

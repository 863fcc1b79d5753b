"""Fixtures of several folders: temporary directories, a fork server, an S3 server that can be cut off."""

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ropewalk.cluster.process.fork_server import FORK_SERVER_VARIABLE
from tests.colliding import colliding  # noqa: F401 - a fixture
from tests.evidence import sections
from tests.installed import command, source, wheel  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from tests.fakes.nfs import Network

REPOSITORY = Path(__file__).resolve().parents[1]
LAB_VARIABLE = "ROPEWALK_S3_LAB"
# by pytest, and by torch, tensorboardX and scikit-learn (which datasets imports) as they are imported
SET_BY_OTHERS = {
    *("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "CRC32C_SW_MODE"),
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),
}
WATCHED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the hub; those of fetching have one of their own
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # jobs of tests compute on the CPU on machines with GPUs too

WARM_SERVER = pytest.StashKey[str]()

pytest_plugins = ["tests.workers"]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Close the log of pytest if it is /dev/null: a fork that ends would close its number, which another file there may have."""
    handler = session.config.pluginmanager.getplugin("logging-plugin").log_file_handler
    if handler.baseFilename == os.devnull:
        handler.close()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Fork the servers of the tests once all is imported, and before pytest watches logs and warnings."""
    with ExitStack() as stack:
        if any("warm" in getattr(item, "fixturenames", ()) for item in session.items):  # first: it must know no other server
            from tests.warm import warm_server

            session.config.stash[WARM_SERVER] = stack.enter_context(warm_server())
        server = sys.modules.get("tests.fork_server")
        if server is not None and not session.config.option.workers:  # each worker has one of its own
            server.fork_server()
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report says what its runs say of themselves."""
    report = yield
    if report.failed and call.when == "call":
        report.sections += [each for each in sections(getattr(item, "funcargs", {})) if each[1]]
    return report


@pytest.fixture(autouse=True)
def _left_as_it_was() -> Iterator[None]:
    """A test leaves the process as it found it, so that any order of tests is as good as any other."""
    before = _state_of_the_process()
    yield
    after = _state_of_the_process()
    assert {name: _items(before[name]) ^ _items(after[name]) for name in before if before[name] != after[name]} == {}


def _items(value: object) -> set[str]:
    parts = value.items() if isinstance(value, dict) else value if isinstance(value, list | set) else [value]
    return {str(part) for part in parts}


def _state_of_the_process() -> dict[str, object]:
    environment = {key: value for key, value in os.environ.items() if key not in SET_BY_OTHERS}
    handlers = {word.name: signal.getsignal(word) for word in WATCHED_SIGNALS}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {"environment": environment, "folder": os.getcwd(), "path": list(sys.path), "handlers": handlers, "blocked": blocked}


def short_folder(parent: Path) -> Path:
    """Make a folder with a name so short that sockets can lie below it; suites that were killed may have left others behind."""
    while True:
        folder = parent / f"t{secrets.token_hex(2)}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


@pytest.fixture(scope="session", autouse=True)
def _childrens_disk() -> Iterator[None]:
    """One temporary directory for all child processes, removed at the end of the session."""
    folder = short_folder(Path(tempfile.gettempdir()))
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)  # for child processes: this one's tempfile has settled already
    yield
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def warm(request: pytest.FixtureRequest, _childrens_disk: None) -> Iterator[None]:
    """Fork runs of the local backend from a process that has imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FORK_SERVER_VARIABLE, request.config.stash[WARM_SERVER])
        yield


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test start as a user's, each from an interpreter of its own."""
    monkeypatch.delenv(FORK_SERVER_VARIABLE, raising=False)


@pytest.fixture
def network(tmp_path: Path) -> Iterator["Network"]:
    """Machines that share a file system with NFS's habits; skips where none can be mounted."""
    from tests.fakes.nfs import Network, need_nfs

    need_nfs()
    network = Network(tmp_path / "network")
    yield network
    network.close()


@pytest.fixture(scope="module")
def alone_with_ray() -> Iterator[None]:
    """Modules that count Ray's processes, or start them beside the other tests, take turns across the processes of pytest."""
    with (Path(tempfile.gettempdir()) / "ropewalk-tests-ray.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class S3Server:
    """A real S3 server behind a fault injector. `env` is also set in this process while tests run."""

    env: dict[str, str]

    def bucket(self, name: str = "") -> str:
        """Make a fresh bucket past the injector; returns its URL."""
        import s3fs

        name = name or f"test-{uuid.uuid4().hex[:12]}"
        direct = s3fs.S3FileSystem(endpoint_url=self.env["S3_DIRECT"], skip_instance_cache=True)
        direct.mkdir(name)
        return f"s3://{name}"

    def cut(self) -> None:
        """The server is away: connections are refused."""
        self._post("/proxies/s3", {"enabled": False})

    def restore(self) -> None:
        """All is well again, whatever was injected."""
        self._post("/reset", {})

    def reset(self) -> None:
        """Every open and every new connection is reset, until `restore`."""
        self._post("/proxies/s3/toxics", {"type": "reset_peer", "attributes": {"timeout": 0}})

    def delay(self, milliseconds: int) -> None:
        """Every answer comes so much later, until `restore`."""
        self._post(
            "/proxies/s3/toxics", {"type": "latency", "attributes": {"latency": milliseconds, "jitter": milliseconds // 2}}
        )

    def _post(self, path: str, value: object) -> None:
        request = urllib.request.Request(self.env["TOXIPROXY_URL"] + path, data=json.dumps(value).encode())
        urllib.request.urlopen(request, timeout=10).close()


def lab_script() -> Path | None:
    named = os.environ.get(LAB_VARIABLE)
    script = Path(named) if named else REPOSITORY.parent / "shared/tools/s3/s3-lab.sh"
    return script if script.is_file() else None


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the session; skips where its script is not found."""
    script = lab_script()
    if script is None:
        pytest.skip(
            f"needs an S3 test server: set {LAB_VARIABLE} to an s3-lab.sh (its `up DIR` starts one and writes DIR/env.sh)"
        )
    folder = tmp_path_factory.mktemp("s3")
    subprocess.run([script, "up", folder], check=True, capture_output=True, timeout=60)
    arguments = (folder / "env.sh").read_text().removeprefix("export ").split()
    env = dict(word.split("=", 1) for word in arguments)
    patch = pytest.MonkeyPatch()
    for key, value in env.items():
        patch.setenv(key, value)
    try:
        yield S3Server(env)
    finally:
        patch.undo()
        subprocess.run([script, "down", folder], check=True, capture_output=True, timeout=60)

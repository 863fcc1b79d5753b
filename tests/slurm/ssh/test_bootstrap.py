"""The program that ssh starts on a login node, in an old Python."""

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.cli.ssh.client import _archive
from ropewalk.jobs.cli.ssh.request import baggage_of, program_tree
from ropewalk.slurm.ssh.connection import BOOTSTRAP, Connection
from ropewalk.slurm.ssh.frames import MAGIC, Frames, Kind

OLDEST = (3, 6)
PYENV = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"


def test_it_is_written_for_python_3_6() -> None:
    ast.parse(BOOTSTRAP.read_text(), feature_version=OLDEST)


@pytest.mark.soak(
    "installs the program once more; test_it_is_written_for_python_3_6 checks the syntax, test_ssh.py starts helpers with"
    " this Python"
)
def test_python_3_6_installs_the_program_and_starts_the_helper(tmp_path: Path) -> None:
    pythons = sorted(PYENV.glob("3.6.*/bin/python3.6"))
    if not pythons:
        pytest.skip("needs Python 3.6: pyenv install 3.6")
    profile = {"root": str(tmp_path), "program": program_tree().digest, "python": sys.executable, "setup": []}
    request = {"start": profile, "arguments": ["--version"], "host": "login.big", "cluster": "big"}
    request |= {"profiles": {}, "profiles_name": "x", "environment": {}}
    pipe = subprocess.PIPE
    with subprocess.Popen([str(pythons[-1]), "-c", BOOTSTRAP.read_text()], stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        frames = Frames(process.stdout.fileno(), process.stdin.fileno())
        frames.send(Kind.REQUEST, request)
        assert frames.read(len(MAGIC)) == MAGIC
        assert frames.receive_json(Kind.NEED) == {"program": True}
        archive = _archive(program_tree())
        frames.send(Kind.PROGRAM, hashlib.sha256(archive).hexdigest().encode() + archive)
        output = b""
        while (frame := frames.receive())[0] is Kind.OUT:
            output += frame[1]
        assert output.startswith(b"ropewalk ")
        assert json.loads(frame[1]) == {"code": 0, "runs": []}


def test_a_folder_that_cannot_be_made_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    request = {"start": {"root": str(tmp_path / "file/runs"), "program": "x"}}
    with (tmp_path / "input").open("wb+") as stream:
        frames = Frames(-1, stream.fileno())
        frames.send(Kind.REQUEST, request)
        frames.send(Kind.PROGRAM, hashlib.sha256(b"").hexdigest().encode())
        stream.seek(0)
        command = [sys.executable, "-c", BOOTSTRAP.read_text()]
        done = subprocess.run(command, stdin=stream, capture_output=True, check=False)
    assert done.stderr == MAGIC + f"[Errno 20] Not a directory: '{tmp_path}/file/runs'\n".encode()


def test_the_files_of_an_environment_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("uv.lock", "pyproject.toml", "env.tar.gz"):
        (tmp_path / name).touch()
    for packages, names in (("uv: uv.lock", {"uv.lock", "pyproject.toml"}), ("path: env.tar.gz", {"env.tar.gz"})):
        baggage = baggage_of("command", None, ["command=[x]", "code.ship=false", f"packages={{{packages}}}"], [])
        assert {Path(f"/{file}") for file in baggage.files} == {tmp_path / name for name in names}
    with pytest.raises(ConfigError, match="a folder is not sent"):
        baggage_of("command", None, ["command=[x]", "packages={path: ../.}"], [])


def test_what_setup_prints_is_shown_even_if_it_arrives_before_the_answer(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    mark = "printf '\\0ropewalk frames\\0'"
    script = f"echo welcome >&2; {mark} >&2; printf 'loaded\nlate' >&2; sleep 0.2; {mark}; cat >/dev/null"
    connection = Connection("big", "login.big", ["sh", "-c", script, "ssh"], terminal=False)
    connection.greet()
    connection.close()
    with connection._process:  # ends, since its input has
        connection._reader.join()
    assert capfdbinary.readouterr().err == b"loaded\nlate"

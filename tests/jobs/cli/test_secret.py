"""`ropewalk secret`: values come from a pipe or a prompt, and only names leave the store."""

import io
import json
import sys
from pathlib import Path

import pytest

from tests.jobs.shell import Shell

VALUE = "hunter2hunter2"


@pytest.fixture
def home(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(shell.home))
    return shell.home / ".config/ropewalk/secrets"


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_a_secret_is_set_listed_and_removed(shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none in" in shell("secret", "list")
    pipe(monkeypatch, f"{VALUE}\n")
    assert VALUE not in shell("secret", "set", "HF_TOKEN", "--on", "good")
    assert (home / "good/HF_TOKEN").read_text() == VALUE
    answer = json.loads(shell("secret", "list", "--on", "good", "--json"))
    assert answer == {"cluster": "good", "location": str(home / "good"), "secrets": ["HF_TOKEN"]}
    assert shell("secret", "list") == shell("secret", "list", "--on", "local"), "another cluster has others"
    checks = json.loads(shell("doctor", "--on", "good", "--json"))["checks"]
    assert [check["detail"] for check in checks if check["name"] == "secrets"] == [f"HF_TOKEN, in {home / 'good'}"]
    assert json.loads(shell("secret", "remove", "HF_TOKEN", "--on", "good", "--json"))["secrets"] == []
    mistake = shell.mistake("secret", "remove", "HF_TOKEN", "--on", "good")
    assert "HF_TOKEN is not set on cluster 'good'; set there: none" in mistake


def test_a_prompt_does_not_show_the_value(shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: VALUE)
    shell("secret", "set", "HF_TOKEN")
    assert VALUE not in shell.out + shell.err
    assert (home / "local/HF_TOKEN").read_text() == VALUE


def test_a_value_is_never_an_argument_nor_repeated(shell: Shell, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["HF_TOKEN", VALUE], [f"HF_TOKEN={VALUE}"], []):
        assert VALUE not in shell.mistake("secret", "set", *arguments)
    pipe(monkeypatch, "short")
    assert "less than 8 characters" in shell.mistake("secret", "set", "HF_TOKEN")
    pipe(monkeypatch, "\n")
    assert "nothing was read" in shell.mistake("secret", "set", "HF_TOKEN")
    assert not home.exists()

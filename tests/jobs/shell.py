"""The command as a user types it, in this process. What it prints with --json is checked against its schema."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ropewalk.jobs.cli import main as cli
from ropewalk.jobs.cli.answers.schema import validate
from ropewalk.jobs.training.loop.forecast import plan
from ropewalk.jobs.training.loop.forecast.size import ModelSize, SizeRequest, measure


@cache
def measured(request: str) -> ModelSize | str:
    try:
        return measure(SizeRequest.model_validate_json(request))
    except Exception as error:
        return f"not counted: {error}"


def measure_here(request: SizeRequest) -> ModelSize | str:
    """Do as `model_size` without a process of its own, whose imports take seconds."""
    return measured(request.model_dump_json())


class Shell:
    """Runs `ropewalk ...` in this process and keeps what it said. Dry runs measure models in this process too."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        monkeypatch.setattr(plan, "model_size", measure_here)
        self._capsys, self._patch, self.home = capsys, monkeypatch, home
        self.log, self.out, self.err = home / "asked.jsonl", "", ""

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        self._patch.setattr("sys.argv", ["ropewalk", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        self.out, self.err = self._capsys.readouterr()
        assert left.value.code == expect, self.err + self.out
        if "--json" in arguments[: arguments.index("--") if "--" in arguments else None]:
            for line in self.out.splitlines():
                validate(arguments[0], line)
        return self.out

    def mistake(self, *arguments: str) -> str:
        self(*arguments, expect=2)
        assert self.out == ""
        assert len(self.err.splitlines()) == 1
        assert self.err.startswith("error: ")
        return self.err

    def asked(self, verb: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if line["verb"] == verb]


def pretrain(*more: str) -> tuple[str, ...]:
    return ("pretrain", "data=data", "steps=3", "seq_len=16", *more)

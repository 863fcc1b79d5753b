"""`ropewalk run JOB --help`: every key of every job, by section, at the widths of terminals."""

import re
from collections.abc import Iterator

import pytest

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.config_reader import walk_keys
from ropewalk.jobs.cli.job_keys import keys_of
from ropewalk.jobs.registry import JOBS, config_of, find_job
from tests.jobs.shell import Shell

KEY = re.compile(r"^([a-z_]+(?:\.[a-z_]+)*)  ")
HEADING = re.compile(r"^(Top-level keys|[a-z_]+: .*)$")


def lines(shell: Shell, monkeypatch: pytest.MonkeyPatch, job: str, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    return [line.rstrip() for line in shell("run", job, "--help").splitlines()]


def entries(page: list[str]) -> Iterator[tuple[str, str, str]]:
    """(section, key, its text on one line) in the order of the page."""
    section, key, text = "", "", ""
    for line in [*page, ""]:
        if key and (not line.startswith(" ") or not line):
            yield section, key, " ".join(text.split())
            key = ""
        if HEADING.match(line):
            section = line.partition(":")[0]
        elif match := KEY.match(line):
            key, text = match[1], line[match.end() :]
        elif key:
            text += line


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("job", JOBS)
def test_every_key_stands_in_its_section(shell: Shell, monkeypatch: pytest.MonkeyPatch, job: str, columns: int) -> None:
    page = lines(shell, monkeypatch, job, columns)
    assert max(map(len, page)) <= columns
    results = list(entries(page))
    kind: type[JobConfig] = config_of(find_job(job))
    assert sorted(key for _, key, _ in results) == sorted(name for name, _ in walk_keys(kind)), "none is hidden, none twice"
    for section, key, text in results:
        assert section == (key.partition(".")[0] if "." in key else "Top-level keys")
        assert re.fullmatch(r".+ \(.+, (required|required with [a-z_]+|unset|default .+)\)", text), f"{key}: {text}"


@pytest.mark.parametrize("job", JOBS)
def test_what_must_be_set_comes_first(shell: Shell, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    results = list(entries(lines(shell, monkeypatch, job, 120)))
    top = ["required" in text for section, _, text in results if section == "Top-level keys"]
    assert top == sorted(top, reverse=True)
    assert any(top)
    sections = list(dict.fromkeys(section for section, _, _ in results))
    assert sections[0] == "Top-level keys"
    assert sections[-3:] == ["resources", "retries", "wandb"]


def test_a_section_says_what_it_is_for_and_whether_it_must_be_set(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    page = lines(shell, monkeypatch, "preprocess", 120)
    assert next(line for line in page if line.startswith("tokenizer:")).endswith(", required")
    page = lines(shell, monkeypatch, "pretrain", 120)
    assert next(line for line in page if line.startswith("start_from:")).endswith(", unset by default")


def test_the_values_of_a_key() -> None:
    keys = {key.name: key for key in keys_of(config_of(find_job("pretrain")))}
    assert keys["optim.schedule"].values == ("cosine", "wsd", "constant")
    assert (keys["optim.betas"].type, keys["optim.betas"].default) == ("list of float", "[0.9, 0.95]")
    assert (keys["resources.nodes"].type, keys["resources.nodes"].default) == ("int or A..B", "1")
    assert keys["model.preset"].default == "tiny", "the job's own, not the section's"
    assert keys["steps"].default is None

"""Filters: what a user writes, what they drop, and that what they drop is on record."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.datapipe.filters import registry
from ropewalk.datapipe.filters.filter import Filter, Verdict
from ropewalk.datapipe.passes.pipeline import make_data_set
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.passes.worker import Task
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.jobs.preprocess.config import PreprocessConfig
from tests.fakes.documents import configure, contents, in_this_process, make, some_documents, write_lines
from tests.fakes.plain_rules import words_of

FORTY = {"min_words": {"words": 40}}
KEYS: dict[str, Any] = {"unit_mib": 0.01, "shard_mib": 0.05}


class Fails(Filter):
    """Divides by nothing, at one document."""

    def judge(self, batch: DocumentBatch) -> Verdict:
        return Verdict.of(str(1 / (number - 7)) for number in batch.column("line"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in/a.jsonl", [*some_documents(300), b"not json"])


def listed(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((output / "rejected").iterdir()) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (["min_words"], [{"min_words": {"words": 50}}]),
        ("min_words", [{"min_words": {"words": 50}}]),
        ([FORTY], [FORTY]),
        (FORTY, [FORTY]),
        ({"min_words": None}, [{"min_words": {"words": 50}}]),
        ([], []),
        (None, []),
    ],
)
def test_what_a_user_writes(tmp_path: Path, source: Path, written: Any, meant: Any) -> None:
    config = configure(source, tmp_path / "out", filters=written)
    assert config.model_dump(mode="json")["filters"] == meant
    assert load_config(PreprocessConfig, config.model_dump(mode="json")) == config, "as the run reads it again"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            ["min_word"],
            "filters: unknown filter 'min_word'; did you mean 'min_words'?; available: c4, decontaminate, fineweb",
        ),
        (["c5"], "filters: unknown filter 'c5'; available: c4, decontaminate, fineweb"),
        ([{"min_words": {"word": 3}}], "filters: min_words: unknown key 'word'; did you mean 'words'?"),
        ([{"min_words": {"words": 0}}], "filters: min_words: words: must be at least 1, not 0"),
        ([{"min_words": 3}], "options must be {option: value}, not 3"),
        (["min_words", FORTY], "'min_words' appears twice"),
        ([3], "3 is neither a name nor"),
        (3, "must be a list"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, source: Path, written: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(source, tmp_path / "out", filters=written)
    assert message in str(caught.value)


def test_what_is_dropped_is_counted_and_listed(tmp_path: Path, source: Path) -> None:
    documents = some_documents(300)
    short = {document["id"] for document in documents if len(words_of(document["text"])) < 40}
    manifest = make(source, tmp_path / "out", filters=[FORTY], **KEYS)
    assert manifest.rejected.reasons["min_words.too_few"] == len(short)
    assert manifest.rejected.reasons["invalid_json"] == 1
    assert {line["id"] for line in listed(tmp_path / "out") if line["reason"] == "min_words.too_few"} == short
    assert {line["id"] for line in listed(tmp_path / "out") if line["reason"] == "duplicate"}.isdisjoint(short)
    assert manifest.totals.documents + manifest.rejected.total == 301
    assert sum(record.rejected for record in manifest.inputs) == manifest.rejected.total


def test_filters_are_part_of_what_a_data_set_is(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    with_forty = make(source, output, filters=[FORTY], **KEYS)
    assert with_forty.config["filters"] == [FORTY]
    assert make(source, output, filters=FORTY, **KEYS) == with_forty, "written otherwise, meant the same"
    for other in ([], [{"min_words": {"words": 41}}]):
        with pytest.raises(DataError, match="filters was"):
            make(source, output, filters=other, **KEYS)
    without = make(source, tmp_path / "without", **KEYS)
    assert "filters" not in without.config
    assert without.hash != with_forty.hash


def test_a_killed_run_goes_on_with_its_filters(tmp_path: Path, source: Path) -> None:
    make(source, tmp_path / "whole", filters=[FORTY], **KEYS)
    config = configure(source, tmp_path / "out", filters=[FORTY], **KEYS)
    order: list[str] = []

    def dies(tasks: Sequence[Task]) -> Any:
        for task, result in in_this_process(config)(list(reversed(tasks))):
            order.append(task.method)
            if len(order) == 2:
                raise KeyboardInterrupt
            yield task, result

    with pytest.raises(KeyboardInterrupt):
        make_data_set(config, config.seed, dies, Progress(lambda _: None))
    make_data_set(config, config.seed, dies, Progress(lambda _: None))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_filter_that_fails_is_named_with_its_document(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN, "fails", f"{__name__}:Fails")
    with pytest.raises(
        DataError, match=r"filter fails failed for document doc-0-6 of book-0: ZeroDivisionError: .*; fix the filter"
    ):
        make(source, tmp_path / "out", filters=["fails"])

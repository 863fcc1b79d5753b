"""Language, decontamination and personal data as stages of a data set: counted, listed, and part of what it is made from."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.datapipe.filters.registry import make_filter
from ropewalk.datapipe.text.document_batch import DocumentBatch
from tests.datapipe.test_language import CODE, ENGLISH, TEXTS
from tests.fakes.documents import configure, make, write_lines

QUESTION = "Which of the following planets has the largest number of known moons orbiting around it in our solar system today?"
STAGES = {"language": {"keep": ["en"]}, "pii": {"replace": ["email", "phone"]}}


def some_input(folder: Path) -> Path:
    records = [{"id": f"en-{n}", "text": f"{ENGLISH} This is text number {n} of many."} for n in range(30)]
    records += [{"id": name, "text": text} for name, text in TEXTS.items() if name != "en"]
    records += [
        {"id": "personal", "text": f"{ENGLISH} Mail jane@example.org, or call +1 206 555 0100 by night."},
        {"id": "dirty", "text": f"{ENGLISH} {QUESTION.upper()}"},
        {"id": "code", "text": CODE},
    ]
    return write_lines(folder / "in.jsonl", records)


def some_evaluation(folder: Path) -> Path:
    return write_lines(folder / "planets.jsonl", [{"question": QUESTION, "choices": ["Saturn", "Mars"], "label": 0}])


def test_stages_drop_replace_count_and_list(tmp_path: Path) -> None:
    keys = {**STAGES, "decontaminate": {"against": [str(some_evaluation(tmp_path))]}, "validation_fraction": 0}
    manifest = make(some_input(tmp_path), tmp_path / "out", **keys)
    assert manifest.rejected.reasons == {
        "decontaminate.planets": 1,
        **{f"language.{name}": 1 for name in ("de", "fr", "ru", "und", "zh")},
    }
    assert manifest.counts == {"language.en": 32, "pii.email": 1, "pii.phone": 1}
    table = pa.ipc.open_file((tmp_path / "out" / manifest.shards[0].path).read_bytes()).read_all().to_pydict()
    tokens = table["tokens"][table["id"].index("personal")]
    text = Tokenizer.from_file(str(tmp_path / "out/tokenizer/tokenizer.json")).decode(tokens)
    assert "Mail <EMAIL>, or call <PHONE> by night." in text
    listed = [json.loads(line) for line in (tmp_path / "out" / manifest.rejected.files[0]).read_text().splitlines()]
    assert {"id": "dirty", "source": "in.jsonl", "reason": "decontaminate.planets"}.items() <= listed[-2].items()


def test_a_changed_evaluation_file_is_another_data_set(tmp_path: Path) -> None:
    evaluation = some_evaluation(tmp_path)
    keys = {"decontaminate": {"against": str(evaluation)}}
    make(some_input(tmp_path), tmp_path / "out", **keys)
    make(some_input(tmp_path), tmp_path / "out", **keys)  # complete: nothing to do
    write_lines(
        evaluation, [{"question": "Another question of a good many words that nobody has asked in this file before today."}]
    )
    with pytest.raises(DataError, match="checksums"):
        make(some_input(tmp_path), tmp_path / "out", **keys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("items.jsonl", json.dumps({"question": QUESTION}).encode()),
        ("items.json", json.dumps({"version": 1, "data": [{"q": QUESTION}]}).encode()),
        ("items.csv", f'id,question\n1,"{QUESTION}"\n'.encode()),
        ("items.txt", f"short\n{QUESTION}\n".encode()),
    ],
)
def test_evaluation_items_of_any_format(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    item = make_filter("decontaminate", {"against": str(tmp_path / name)})
    verdict = item.judge(DocumentBatch.of_texts([f"So: {QUESTION}", ENGLISH]))
    assert [verdict.reasons[c - 1] if c else None for c in verdict.codes] == ["items", None]


def test_a_damaged_evaluation_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "items.jsonl", [{"q": QUESTION}, b"{broken"])
    with pytest.raises(DataError, match=r"items\.jsonl: line 2: not JSON"):
        make(some_input(tmp_path), tmp_path / "out", decontaminate={"against": str(path)})
    with pytest.raises(DataError, match="no such file"):
        make(some_input(tmp_path), tmp_path / "out2", decontaminate={"against": str(tmp_path / "nowhere.jsonl")})


def test_unknown_kinds_and_keys_are_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="national_id"):
        configure("in", "out", pii={"replace": ["emial"]})
    with pytest.raises(ConfigError, match="min_confidence"):
        configure("in", "out", language={"min_confidence": 2})

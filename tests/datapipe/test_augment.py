"""Fill-in-the-middle loses no character, leaves validation and prose alone, and depends on a document's id alone."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from ropewalk.cluster.errors import ConfigError, DataError
from tests.fakes.documents import make, write_lines

PRE, MID, SUF, END = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|endoftext|>"
FIM: dict[str, Any] = {"augment": {"fim": {"rate": 0.7}}, "tokenizer": {"train": 400}, "validation_fraction": 0.2}


def some_code(folder: Path) -> tuple[Path, dict[str, str]]:
    texts = {f"file-{n}.py": f"def f{n}(x):\n    return x + {n}  # naïve 🪢 {PRE}\n" * (n % 4 + 1) for n in range(80)}
    texts |= {f"prose-{n}": f"Once upon a time there was rope number {n}." for n in range(20)}
    return write_lines(folder / "in.jsonl", [{"id": name, "text": text} for name, text in texts.items()]), texts


def decoded(output: Path, folder: str) -> dict[str, str]:
    tokenizer = Tokenizer.from_file(str(output / "tokenizer/tokenizer.json"))
    marks = {tokenizer.token_to_id(mark): f"\x00{name}" for mark, name in ((PRE, "P"), (MID, "M"), (SUF, "S"))}
    results = {}
    for file in sorted((output / folder).glob("*.arrow")):
        for row in pa.ipc.open_file(file.read_bytes()).read_all().to_pylist():
            text, held = "", []
            for token in row["tokens"][:-1]:
                if token in marks:
                    text, held = text + tokenizer.decode(held) + marks[token], []
                else:
                    held.append(token)
            results[row["id"]] = text + tokenizer.decode(held)
    return results


def put_back(text: str) -> str:
    """The document again."""
    if not text.startswith("\x00P"):
        return text
    before, _, rest = text[2:].partition("\x00S")
    suffix, _, tail = rest.partition("\x00M")
    return before + tail + suffix


def test_every_document_can_be_put_together_again(tmp_path: Path) -> None:
    source, texts = some_code(tmp_path)
    make(source, tmp_path / "out", **FIM)
    train = decoded(tmp_path / "out", "shards")
    moved = {name for name, text in train.items() if text.startswith("\x00")}
    assert {name: put_back(text) for name, text in train.items()} == {name: texts[name] for name in train}
    assert 0.5 < len(moved) / sum(name.endswith(".py") for name in train) < 0.9
    assert all(name.endswith(".py") for name in moved)
    assert 0.2 < sum(train[name].startswith("\x00P\x00S") for name in moved) / len(moved) < 0.8
    assert decoded(tmp_path / "out", "validation") == {n: t for n, t in texts.items() if n not in train}


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shouting_augment.py").write_text(
        "def shout(text, name):\n    return text.upper()\n\ndef broken(text, name):\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source, texts = some_code(tmp_path)
    make(source, tmp_path / "out", **{**FIM, "augment": {"function": "shouting_augment:shout"}})
    assert all(text == texts[name].upper() for name, text in decoded(tmp_path / "out", "shards").items())
    with pytest.raises(DataError, match="returned NoneType for document"):
        make(source, tmp_path / "out2", **{**FIM, "augment": {"function": "shouting_augment:broken"}})
    with pytest.raises(ConfigError, match="there is no module 'nowhere'"):
        make(source, tmp_path / "out3", **{**FIM, "augment": {"function": "nowhere:f"}})


def test_a_tokenizer_without_the_tokens_is_refused(tmp_path: Path) -> None:
    source, _ = some_code(tmp_path)
    make(source, tmp_path / "plain", tokenizer={"train": 400})
    with pytest.raises(ConfigError, match=r"has no token '<\|fim_prefix\|>'"):
        make(source, tmp_path / "out", **{**FIM, "tokenizer": {"path": str(tmp_path / "plain/tokenizer")}})

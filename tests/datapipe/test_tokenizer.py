"""A tokenizer is trained to the same bytes every time, or taken over; no text can fake an end of document."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import Manifest
from ropewalk.datapipe.passes.pipeline import make_data_set
from ropewalk.datapipe.passes.progress import Progress
from ropewalk.datapipe.tokens.fast import HARD_TEXTS, FastTokenizer, FastTokenizerError
from ropewalk.datapipe.tokens.tokenizer import (
    Encoder,
    TokenizerFiles,
    _load_fast,
    read_tokenizer,
    take_tokenizer,
    train_tokenizer,
    write_tokenizer,
)
from ropewalk.jobs.preprocess.config import PreprocessConfig
from tests.fakes.documents import configure, contents, in_this_process, make, rows, some_documents, write_lines

TEXTS = [d["text"] for d in some_documents(300)]


@pytest.fixture(autouse=True)
def fresh_tokenizers() -> Iterator[None]:
    """Check fastokens anew in each test, and leave no broken one to others."""
    _load_fast.cache_clear()
    yield
    _load_fast.cache_clear()


TRAIN = """
import json, sys
from ropewalk.datapipe.tokens.tokenizer import train_tokenizer
files = train_tokenizer(json.load(sys.stdin), 500).files
sys.stdout.buffer.write(b"".join(files[name] for name in sorted(files)))
"""


def test_training_is_a_pure_function_of_the_texts() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1", "TOKENIZERS_PARALLELISM": "true"}
    command, data = [sys.executable, "-c", TRAIN], json.dumps(TEXTS).encode()
    trained = subprocess.run(command, env=environment, input=data, check=True, capture_output=True, cwd=Path.cwd()).stdout
    files = train_tokenizer(TEXTS, 500).files
    assert trained == b"".join(files[name] for name in sorted(files))
    assert len(trained) > 10_000


def test_a_trained_tokenizer_opens_in_transformers_and_gives_the_text_back(tmp_path: Path) -> None:
    output, work = StoragePath(tmp_path), StoragePath(tmp_path / ".work")
    write_tokenizer(output, work, train_tokenizer(TEXTS, 400))
    opened = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    files = read_tokenizer(output, work)
    assert files is not None
    encoder = Encoder(files)
    assert (opened.eos_token_id, len(opened)) == (encoder.end_of_document, encoder.vocabulary)
    for text, tokens in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert opened.decode(tokens[:-1]) == text
        assert tokens.tolist() == [*opened.encode(text, add_special_tokens=False), opened.eos_token_id]
        assert tokens.dtype == np.uint16


def test_a_text_cannot_end_its_own_document() -> None:
    encoder = Encoder(train_tokenizer(TEXTS, 400))
    (tokens,) = encoder.encode(["before <|endoftext|> after"])
    assert (tokens == encoder.end_of_document).sum() == 1
    assert encoder.tokenizer.decode(tokens[:-1].tolist()) == "before <|endoftext|> after"


def test_a_faster_backend_gives_the_same_tokens_of_hard_texts() -> None:
    files = train_tokenizer([*TEXTS, *HARD_TEXTS], 600)
    plain, fast = Encoder(files), Encoder(files, "fastokens")
    texts = [*TEXTS, *HARD_TEXTS, "w" * 1_000_000, "\ud800".encode("utf-8", "replace").decode(), "<|endoftext|>" * 100]
    for item, other in zip(plain.encode(texts), fast.encode(texts), strict=True):
        assert item.tolist() == other.tolist()
        assert (other == fast.end_of_document).sum() == 1
        assert item.dtype == other.dtype
    assert (fast.record().backend, plain.record().backend) == ("fastokens", "tokenizers")
    assert [t.tolist() for t in fast.encode([])] == []


def differ_on(monkeypatch: pytest.MonkeyPatch, piece: str) -> None:
    """Let fastokens give a wrong first token for every text that holds `piece`."""
    encode = FastTokenizer._encode

    def wrong(self: FastTokenizer, texts: Sequence[str]) -> Any:
        ids, offsets = encode(self, texts)
        shift = np.zeros(len(ids), np.uint32)
        shift[[offsets[at] for at, text in enumerate(texts) if piece in text and offsets[at] < offsets[at + 1]]] = 1
        return ids + shift, offsets

    monkeypatch.setattr(FastTokenizer, "_encode", wrong)


def make_and_collect_reasons(source: Path, output: Path, **keys: Any) -> tuple[Manifest, list[str]]:
    config, reasons = configure(source, output, unit_mib=1, shard_mib=0.05, **keys), []
    progress = Progress(lambda _: None, on_slow_tokenizer=reasons.append)
    return make_data_set(config, config.seed, in_this_process(config), progress), reasons


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|mine|>", "<|MINE|>"])
def test_the_faster_backend_is_tried_on_the_tokenizers_own_special_tokens(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = train_tokenizer(TEXTS, 400, ("<|mine|>",))
    Encoder(files, "fastokens")
    _load_fast.cache_clear()
    differ_on(monkeypatch, token)
    with pytest.raises(FastTokenizerError, match=r"fastokens .* and tokenizers disagree on"):
        Encoder(files, "fastokens")


def test_a_data_set_does_not_depend_on_the_backend(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", some_documents(60))
    make(source, tmp_path / "plain", tokenizer={"train": 400, "sample_mib": 1, "backend": "tokenizers"})
    manifest = make(source, tmp_path / "fast")
    assert rows(tmp_path / "plain") == rows(tmp_path / "fast")
    assert contents(tmp_path / "plain/shards") == contents(tmp_path / "fast/shards")
    assert (manifest.tokenizer.backend, manifest.tokenizer.version) == ("fastokens", version("fastokens"))
    assert make(source, tmp_path / "plain").tokenizer.backend == "tokenizers", "a complete data set is not made again"


@pytest.mark.parametrize("piece", ["\x7f", "rope"], ids=["odd text", "first documents"])
def test_a_tokenizer_that_fastokens_encodes_differently_is_encoded_by_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_lines(tmp_path / "in.jsonl", some_documents(60))
    make_and_collect_reasons(source, tmp_path / "plain", tokenizer={"train": 400, "sample_mib": 1, "backend": "tokenizers"})
    _load_fast.cache_clear()
    differ_on(monkeypatch, piece)
    manifest, reasons = make_and_collect_reasons(source, tmp_path / "out")
    assert manifest.tokenizer.backend == "tokenizers"
    assert contents(tmp_path / "out/shards") == contents(tmp_path / "plain/shards")
    (reason,) = reasons
    assert f"fastokens {version('fastokens')} and tokenizers disagree on" in reason
    assert [r.getMessage() for r in caplog.records if "slower" in r.getMessage()] == [
        f"encoding with tokenizers, which is slower: {reason}"
    ]


def test_a_difference_in_a_later_document_lets_tokenizers_encode_all_shards_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [*some_documents(200), *({"id": f"late-{n}", "text": f"zebra {n}"} for n in range(200))]
    source = write_lines(tmp_path / "in.jsonl", documents)
    plain = {"train": 400, "sample_mib": 1, "backend": "tokenizers"}
    make_and_collect_reasons(source, tmp_path / "plain", tokenizer=plain)
    _load_fast.cache_clear()
    differ_on(monkeypatch, "zebra")
    manifest, reasons = make_and_collect_reasons(source, tmp_path / "out")
    assert (manifest.tokenizer.backend, len(reasons)) == ("tokenizers", 1)
    assert contents(tmp_path / "out/shards") == contents(tmp_path / "plain/shards")


def test_without_fastokens_tokenizers_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _load_fast.cache_clear()
    monkeypatch.setitem(sys.modules, "fastokens", None)
    manifest, reasons = make_and_collect_reasons(write_lines(tmp_path / "in.jsonl", some_documents(30)), tmp_path / "out")
    assert manifest.tokenizer.backend == "tokenizers"
    assert "fastokens is not installed" in reasons[0]


def test_a_tokenizer_that_fastokens_cannot_read_is_encoded_by_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(large_vocabulary().files["tokenizer.json"])
    source = write_lines(tmp_path / "in.jsonl", some_documents(30))
    manifest, reasons = make_and_collect_reasons(source, tmp_path / "out", tokenizer={"path": str(tmp_path / "large.json")})
    assert manifest.tokenizer.backend == "tokenizers"
    assert "fastokens" in reasons[0]


def test_fastokens_is_installed_where_it_has_wheels() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (line,) = [line for line in project["optional-dependencies"]["train"] if line.startswith("fastokens")]
    marker = Requirement(line).marker
    assert marker is not None
    platforms = [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64"), ("win32", "AMD64")]
    wanted = [marker.evaluate({"sys_platform": system, "platform_machine": machine}) for system, machine in platforms]
    assert wanted == [True, True, True, False, False]


@pytest.mark.parametrize("form", ["directory", "file"])
def test_an_existing_tokenizer_is_taken_over(tmp_path: Path, form: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", some_documents(40))
    make(source, tmp_path / "first")
    path = tmp_path / "first/tokenizer"
    manifest = make(
        source, tmp_path / "second", tokenizer={"path": str(path if form == "directory" else path / "tokenizer.json")}
    )
    assert rows(tmp_path / "first") == rows(tmp_path / "second")
    assert manifest.tokenizer.name == "tokenizer"
    assert AutoTokenizer.from_pretrained(tmp_path / "second/tokenizer") is not None


def large_vocabulary() -> TokenizerFiles:
    vocabulary = {"<eos>": 0, "rope": 1} | {f"word{i}": i for i in range(2, 70_000)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="rope"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return TokenizerFiles(name="large", files={"tokenizer.json": tokenizer.to_str().encode()})


def test_a_large_vocabulary_takes_wider_tokens(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(large_vocabulary().files["tokenizer.json"])
    source = write_lines(tmp_path / "in.jsonl", [{"id": "a", "text": "word69999 rope"}])
    manifest = make(source, tmp_path / "out", tokenizer={"path": str(tmp_path / "large.json")}, validation_fraction=0)
    assert (manifest.token_type, manifest.tokenizer.vocabulary) == ("uint32", 70_000)
    assert rows(tmp_path / "out")[0]["tokens"] == [69_999, 1, 0]


def test_a_tokenizer_that_will_not_do_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="neither a local path nor in the Hugging Face cache"):
        take_tokenizer("nobody/no-such-tokenizer")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"not a valid tokenizer\.json"):
        take_tokenizer(str(tmp_path))
    with pytest.raises(ConfigError, match="no such directory"):
        take_tokenizer(str(tmp_path / "nowhere"))
    endless = json.loads(large_vocabulary().files["tokenizer.json"])
    endless["model"]["vocab"] = {"rope": 0}
    with pytest.raises(ConfigError, match="no end-of-document token"):
        Encoder(TokenizerFiles(name="endless", files={"tokenizer.json": json.dumps(endless).encode()}))


def test_one_word_on_the_command_line_is_enough(tmp_path: Path) -> None:
    base = {"input": str(tmp_path), "output": str(tmp_path / "out")}
    config = load_config(PreprocessConfig, base, ["tokenizer.train=8192"])
    assert isinstance(config, PreprocessConfig)
    assert config.tokenizer.train == 8192
    named = load_config(PreprocessConfig, base, ["tokenizer.path=org/name"])
    assert isinstance(named, PreprocessConfig)
    assert named.tokenizer.path == "org/name"
    with pytest.raises(ConfigError, match=r"set either tokenizer\.train"):
        load_config(PreprocessConfig, base, ["tokenizer.train=8192", "tokenizer.path=x"])
    with pytest.raises(ConfigError, match="tokenizer: required"):
        load_config(PreprocessConfig, base)

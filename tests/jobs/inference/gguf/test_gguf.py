"""GGUF: llama.cpp opens what is written, reads the same tokens, says the same log-probabilities, or nothing is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from ropewalk.cluster.errors import ConfigError
from ropewalk.datapipe.tokens.tokenizer import train_tokenizer
from ropewalk.jobs.inference.gguf.gguf import gguf_of, write_gguf
from ropewalk.jobs.inference.gguf.gguf_tokenizer import gguf_tokenizer
from ropewalk.jobs.inference.gguf.llama_cpp import LlamaCpp
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model
from tests.jobs.tiny import tiny_model

SHAPE = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
TEXTS = [
    "it's the 12 ropes, laid  in a long lane\n\n",
    "naïve 🙂 北京",
    "the yarns twisted in a long straight lane by one walker",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grouped heads of a size of their own, tied embeddings, more rows than tokens, a tokenizer as preprocess trains it."""
    folder = tiny_model(tmp_path_factory.mktemp("formats") / "model", tokenizer=False, vocab_size=320, eos_token_id=0, **SHAPE)
    for name, content in train_tokenizer(TEXTS * 9, 300).files.items():
        (folder / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opened(model: Path) -> OpenModel:
    return open_model(str(model))


@pytest.mark.parametrize("name", ["F32", "F16", "Q4_K"])
def test_llama_cpp_says_the_same(opened: OpenModel, tmp_path: Path, name: str) -> None:
    written = write_gguf(opened, tmp_path / "model.gguf", name)
    assert list(tmp_path.iterdir()) == [written.path]
    assert sum(written.tensors.values()) == len(opened.model.state_dict()) - 1, "tied embeddings are there once"
    limit = {"F32": 1e-3, "F16": 0.2, "Q4_K": 10.0}[name]
    with LlamaCpp(written.path, exact=True) as engine:
        assert engine.is_end(0)
        for text in TEXTS:
            ids = opened.tokenizer(text)["input_ids"]
            assert engine.tokenize(text, add_special=True) == ids
            ours = opened.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            assert np.abs(ours.numpy() - engine.log_probabilities(ids)).max() < limit
    if name == "Q4_K":
        assert written.tensors == {"Q4_K": 2, "IQ4_NL": 10, "Q5_0": 3, "F32": 5}


def test_what_is_written_beside_the_model_is_found_again_and_follows_it(model: Path) -> None:
    first = gguf_of(model, "Q8_0")
    created = first.stat().st_mtime_ns
    assert gguf_of(str(model), "Q8_0") == first
    assert first.stat().st_mtime_ns == created
    template = GGUFReader(first).fields["tokenizer.chat_template"].contents()
    assert template.startswith("{% for m in messages")
    (model / "generation_config.json").write_text("{}")
    assert gguf_of(model, "Q8_0") != first, "another model now"


def test_an_unfinished_file_is_seen_by_nobody(opened: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ropewalk.jobs.inference.gguf.gguf._permute_heads", lambda values, heads: values
    )  # as if rows were in the wrong order
    with pytest.raises(ConfigError, match=r"as F32, llama.cpp's log-probabilities differ by"):
        write_gguf(opened, tmp_path / "model.gguf", "F32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], "smollm"),
        ([pre_tokenizers.ByteLevel(add_prefix_space=True)], None),
        ([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)], None),
        ([pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)], None),
        ([pre_tokenizers.Metaspace()], None),
    ],
)
def test_the_pre_tokenizer_is_named_by_what_it_is_or_refused(
    opened: OpenModel, steps: list[pre_tokenizers.PreTokenizer], name: str | None
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(opened.name)
    tokenizer.backend_tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    if name is None:
        with pytest.raises(ConfigError, match="its tokenizer cannot be written as GGUF: its pre-tokenizer"):
            gguf_tokenizer(tokenizer, 320)
    else:
        assert gguf_tokenizer(tokenizer, 320).pre == name


def test_a_file_of_another_tokenizer_is_found_out(opened: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.loads(opened.tokenizer.backend_tokenizer.to_str())
    described["model"]["merges"] = described["model"]["merges"][:3]
    other = AutoTokenizer.from_pretrained(opened.name)
    other._tokenizer = Tokenizer.from_str(json.dumps(described))
    wrong = gguf_tokenizer(other, 320)
    monkeypatch.setattr("ropewalk.jobs.inference.gguf.gguf.gguf_tokenizer", lambda tokenizer, vocabulary: wrong)
    with pytest.raises(ConfigError, match=r"llama.cpp reads .* it cannot be written as GGUF"):
        write_gguf(opened, tmp_path / "model.gguf", "Q8_0")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "gpt2", model_type="gpt_neox")
    with pytest.raises(ConfigError, match="models of type 'gpt_neox' are not among llama"):
        gguf_of(other)
    with pytest.raises(ConfigError, match="there is no type 'Q9'; types: F32, F16"):
        gguf_of(other, "Q9")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigError, match=r"llama\.cpp cannot open it"):
        LlamaCpp(tmp_path / "bad.gguf")

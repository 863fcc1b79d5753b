"""Stops that are special tokens: found in what is written, and not shown."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ropewalk.jobs.inference.engines.api.text import TextStream, Vocabulary
from tests.jobs.corpus import write_tokenizer

TURN, OTHER = 257, 258


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|other|>"]})
    return Vocabulary(tokenizer)


@pytest.mark.parametrize(
    ("stops", "tokens", "shown", "stopped"),
    [
        (["<|turn|>"], [*b"yes", TURN, *b"no"], "yes", True),
        (["<|turn|>"], [*b"yes", OTHER, *b"no"], "yesno", False),
        (["\n<|turn|>"], [*b"yes", TURN, *b"no\n", TURN, *b"!"], "yesno", True),
        (["\n<|turn|>"], [*b"yes\n", OTHER, TURN], "yes", True),  # what is not shown parts nothing
        (["<|turn|>user"], [*b"a", TURN, *b"us", TURN, *b"user"], "aus", True),
        (["<|turn|>user"], [*b"a", TURN, *b"us"], "aus", False),
        (["<|turn|>"], [*b"say <|turn|> so"], "say ", True),  # spelt, and no token
        (["o", "<|turn|>"], [*b"yes", TURN, *b"no"], "yes", True),
        (["no"], [*b"yes n", TURN, *b"o"], "yes ", True),
        (["<|turn|>"], ["\u6f22".encode()[0], "\u6f22".encode()[1], TURN, *b"no"], "\ufffd", True),
        ([""], [*b"yes", TURN], "yes", False),
    ],
)
def test_a_stream_ends_at_a_special_token(
    vocabulary: Vocabulary, stops: list[str], tokens: list[int], shown: str, stopped: bool
) -> None:
    stream, text, ended = TextStream(vocabulary, stops, [*b"ask"]), "", False
    for token in tokens:
        piece = stream.push(token)
        text, ended = text + piece.text, piece.stopped
        if ended:
            break
    text += "" if ended else stream.end().text
    assert (text, ended) == (shown, stopped)

"""The keys `tokenizer` and `augment` of a job file."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ropewalk.cluster.input_paths import Fetched, absolute
from ropewalk.cluster.section import Section

CODE = ("*.py", "*.pyi", "*.c", "*.h", "*.cc", "*.cpp", "*.hpp", "*.rs", "*.go", "*.java", "*.js", "*.ts", "*.sh", "*.sql")


def _tokenizer_path(path: str) -> str:
    """Make a local path absolute; return a Hugging Face name unchanged."""
    looks_local = path.startswith((".", "/", "~")) or path.endswith(".json") or Path(path).exists()
    return absolute(path) if looks_local or re.match(r"^[a-z0-9+]+:", path) else path


class TokenizerChoice(Section):
    """Tokenizer of a data set: `{train: 8192}` trains a byte-level BPE, `{path: X}` uses an existing one."""

    train: int | None = Field(default=None, ge=300, le=1_000_000, description="train a byte-level BPE with this vocabulary size")
    path: Annotated[str, AfterValidator(_tokenizer_path), Fetched("tokenizer")] | None = Field(
        default=None, description="or use a Hugging Face directory, a tokenizer.json, or a name on the Hugging Face hub"
    )
    backend: Literal["fastokens", "tokenizers"] = Field(
        default="fastokens",
        description="encoder; fastokens is some 30 times as fast, and is used if it gives the same tokens as tokenizers: on odd"
        " texts and the first documents, and on a piece of every batch",
    )
    sample_mib: float = Field(default=16, gt=0, le=1024, description="text to train the tokenizer on, MiB")

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizerChoice":
        if (self.train is None) == (self.path is None):
            raise ValueError("set either tokenizer.train (such as 8192) or tokenizer.path, and the other to null")
        return self


class FillInTheMiddle(Section):
    """Fill-in-the-middle: move the middle of a document to its end (Bavarian et al. 2022)."""

    rate: float = Field(default=0.5, gt=0, le=1, description="share of documents to rearrange")
    spm_rate: float = Field(
        default=0.5, ge=0, le=1, description="share of rearranged documents with the suffix before the prefix"
    )
    of: tuple[str, ...] = Field(default=CODE, description="globs of ids or sources of the documents to rearrange; ['*']: all")
    prefix: str = Field(default="<|fim_prefix|>", description="token before the prefix; a trained tokenizer includes it")
    middle: str = Field(default="<|fim_middle|>", description="token before the middle")
    suffix: str = Field(default="<|fim_suffix|>", description="token before the suffix")

    @property
    def tokens(self) -> tuple[str, str, str]:
        return self.prefix, self.middle, self.suffix


class Augment(Section):
    """Rewriting of training documents; the validation split is not changed."""

    function: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="MODULE:FUNCTION of yours that maps (text, id) to a text and depends on nothing else",
    )
    fim: FillInTheMiddle | None = Field(default=None, description="fill-in-the-middle for code, such as {rate: 0.5}")

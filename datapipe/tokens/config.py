"""The keys `tokenizer` and `augment` of a job file."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ropewalk.cluster.config import Section, absolute

CODE = ("*.py", "*.pyi", "*.c", "*.h", "*.cc", "*.cpp", "*.hpp", "*.rs", "*.go", "*.java", "*.js", "*.ts", "*.sh", "*.sql")


def _tokenizer_path(word: str) -> str:
    """A local path made absolute where the user stands; a Hugging Face name as it is."""
    looks_local = word.startswith((".", "/", "~")) or word.endswith(".json") or Path(word).exists()
    return absolute(word) if looks_local or re.match(r"^[a-z0-9+]+:", word) else word


class TokenizerChoice(Section):
    """`{train: 8192}` trains a byte-level BPE on the documents, `{path: X}` takes an existing tokenizer."""

    train: int | None = Field(default=None, ge=300, le=1_000_000, description="train a byte-level BPE with this vocabulary size")
    path: Annotated[str, AfterValidator(_tokenizer_path)] | None = Field(
        default=None, description="or copy a Hugging Face directory, a tokenizer.json, or a name on the Hugging Face hub"
    )
    backend: Literal["tokenizers", "fastokens"] = Field(
        default="tokenizers",
        description="what encodes; fastokens (pip install ropewalk[fast]) is some 30 times as fast, and checked against"
        " tokenizers as it starts and on a piece of every batch",
    )
    sample_mib: float = Field(default=16, gt=0, le=1024, description="text to train the tokenizer on, MiB")

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizerChoice":
        if (self.train is None) == (self.path is None):
            raise ValueError("set either tokenizer.train (such as 8192) or tokenizer.path, and the other one to null")
        return self


class FillInTheMiddle(Section):
    """Move the middle of a document behind its end, so that a model learns to fill it in (Bavarian et al. 2022)."""

    rate: float = Field(default=0.5, gt=0, le=1, description="share of the documents that are rearranged")
    spm_rate: float = Field(default=0.5, ge=0, le=1, description="share of those in which the suffix comes before the prefix")
    of: tuple[str, ...] = Field(default=CODE, description="globs of ids or sources whose documents are rearranged; ['*']: all")
    prefix: str = Field(default="<|fim_prefix|>", description="token before the prefix; a tokenizer that is trained gets it")
    middle: str = Field(default="<|fim_middle|>", description="token before the middle")
    suffix: str = Field(default="<|fim_suffix|>", description="token before the suffix")

    @property
    def tokens(self) -> tuple[str, str, str]:
        """The three tokens."""
        return self.prefix, self.middle, self.suffix


class Augment(Section):
    """What is done with training documents; the validation split stays as it is."""

    function: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="MODULE:FUNCTION of your own from (text, id) to a text; it must depend on nothing else",
    )
    fim: FillInTheMiddle | None = Field(default=None, description="fill-in-the-middle for code, such as {rate: 0.5}")

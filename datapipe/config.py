"""The configuration of a data set: reading, filtering, tokenizing. It is light, as the command line reads it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ropewalk.cluster.config import DataPath, Section, absolute
from ropewalk.datapipe.filters.augment import Augment
from ropewalk.datapipe.filters.balance import Balance
from ropewalk.datapipe.filters.decontaminate import Decontaminate
from ropewalk.datapipe.filters.language import Language
from ropewalk.datapipe.filters.paragraphs import Paragraphs
from ropewalk.datapipe.filters.pii import PersonalData
from ropewalk.datapipe.filters.registry import Filters
from ropewalk.datapipe.minhash.config import NearDuplicates

MIB = 1 << 20


def _tokenizer_path(word: str) -> str:
    """A local path made absolute where the user stands; a Hugging Face name as it is."""
    looks_local = word.startswith((".", "/", "~")) or word.endswith(".json") or Path(word).exists()
    return absolute(word) if looks_local or re.match(r"^[a-z0-9+]+:", word) else word


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


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


class ReadRules(Section):
    """The keys of a record that are read, and the sizes of documents that are let in."""

    id_key: str = Field(default="id", description="key of a document's id; a record without one gets FILE:LINE")
    text_key: str = Field(default="text", description="key of a document's text")
    source_key: str = Field(default="source", description="key of a document's source; a record without one gets the file's name")
    min_chars: int = Field(default=1, ge=0, description="reject shorter documents")
    max_chars: int | None = Field(default=None, ge=1, description="reject longer documents")
    max_line_mib: float = Field(default=32, gt=0, le=1024, description="reject longer lines and text files, MiB")
    main_content: bool = Field(default=True, description="of web pages (.warc.gz) only the main content, no menus")
    unit_mib: float = Field(default=64, gt=0, description="input that one task reads, MiB")


class DataSetConfig(ReadRules):
    """Everything that decides a data set's bytes, and where it goes."""

    input: Annotated[tuple[DataPath, ...], BeforeValidator(_one_or_many)] = Field(
        min_length=1,
        description="files, directories (names with a leading dot are left out) or globs (** too) of .jsonl[.gz|.zst],"
        " .parquet, .warc[.gz], .wet[.gz] or text; any fsspec URL",
    )
    output: DataPath = Field(description="directory of the data set; any fsspec URL")
    tokenizer: TokenizerChoice = Field(description="how text becomes tokens")
    filters: Filters = Field(
        default=(),
        description="what drops documents, in order: names, or {name: {option: value}}; built in: gopher_quality,"
        " gopher_repetition, c4, fineweb, min_words",
    )
    near_duplicates: NearDuplicates | None = Field(
        default=None, description="drop documents that nearly repeat another one, such as {similarity: 0.8}; unset: off"
    )
    language: Language | None = Field(default=None, description="which languages are kept, before any filter; unset: all")
    decontaminate: Decontaminate | None = Field(
        default=None, description="drop documents that contain items of evaluation sets, after the filters; unset: off"
    )
    pii: PersonalData | None = Field(default=None, description="replace personal data by placeholders, last of all; unset: off")
    augment: Augment | None = Field(
        default=None, description="rewrite training documents before they are tokenized, such as {fim: {rate: 0.5}}"
    )
    balance: Balance | None = Field(
        default=None, description="shares of sources or languages in the training text, such as {by: language, temperature: 0.5}"
    )
    paragraphs: Paragraphs | None = Field(
        default=None, description="cut paragraphs that stand in an earlier document, such as {of: lines}; unset: off"
    )
    validation_fraction: float = Field(
        default=0.01, ge=0, le=0.5, description="share of documents for the validation split, by a hash of their id"
    )
    shard_mib: float | None = Field(
        default=None, gt=0, le=1024, description="text in one shard, MiB; unset: a 64th of all text, between 4 and 256"
    )


class ArrayOptions(Section):
    """How `fanout: array` cuts a pass into array tasks, and what each of them asks for."""

    at_once: int | None = Field(
        default=None,
        ge=1,
        description="array tasks that run at the same time (Slurm's %limit); unset: all; without Slurm: one per CPU",
    )
    jobs: int | None = Field(
        default=None, ge=1, description="array tasks that a pass is cut into; unset: 64 or at_once; without Slurm: at_once"
    )
    minutes: int = Field(
        default=60, ge=1, description="time limit of an array task, minutes; what it leaves undone goes to another"
    )
    cpus: int = Field(
        default=1, ge=1, description="CPU cores of an array task (it uses one; on many clusters more cores mean more memory)"
    )
    memory_gib: float | None = Field(default=None, gt=0, description="memory of an array task, GiB; unset: the cluster's default")
    partition: str | None = Field(default=None, description="Slurm partition of the array; unset: the run's own")


def stages(config: DataSetConfig) -> Filters:
    """Everything that pass 1 does with documents, in order: language, the user's filters, decontamination, personal data."""
    named = {"language": config.language, "decontaminate": config.decontaminate, "pii": config.pii}
    own = {name: {name: one.model_dump(mode="json")} for name, one in named.items() if one is not None}
    before, after = [own[n] for n in ("language",) if n in own], [own[n] for n in ("decontaminate", "pii") if n in own]
    return (*before, *config.filters, *after)

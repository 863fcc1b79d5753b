"""The configuration of a data set: reading, filtering, tokenizing. It is light, as the command line reads it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ropewalk.cluster.config import DataPath, Section
from ropewalk.datapipe.dedup.paragraphs.config import Paragraphs
from ropewalk.datapipe.filters.decontamination.filter import Decontaminate
from ropewalk.datapipe.filters.language.filter import Language
from ropewalk.datapipe.filters.privacy.filter import PersonalData
from ropewalk.datapipe.filters.registry import Filters
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.tokens.config import Augment, TokenizerChoice


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Balance(Section):
    """Re-weight sources or languages: of one that is to weigh more documents are repeated, of others some are left out."""

    by: Literal["source", "language"] = Field(
        default="source", description="what is balanced: sources, or languages as py3langid tells them (`und`: none)"
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="{SOURCE or LANGUAGE: share of the training text}; those that are not named share the rest as they are",
    )
    temperature: float = Field(
        default=1, gt=0, le=1, description="shares follow size^temperature: 1 leaves them, towards 0 all sources weigh the same"
    )
    max_epochs: float = Field(
        default=4, ge=1, le=10_000, description="the most that a source is repeated; what is missing then is missing"
    )

    @model_validator(mode="after")
    def _shares(self) -> "Balance":
        if any(weight < 0 for weight in self.weights.values()) or sum(self.weights.values()) > 1 + 1e-9:
            raise ValueError(f"weights are shares: none below 0, at most 1 in all; they are {self.weights}")
        if self.weights and self.temperature != 1:
            raise ValueError("set weights or temperature, not both")
        return self


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


def stages(config: DataSetConfig) -> Filters:
    """Everything that pass 1 does with documents, in order: language, the user's filters, decontamination, personal data."""
    named = {"language": config.language, "decontaminate": config.decontaminate, "pii": config.pii}
    own = {name: {name: one.model_dump(mode="json")} for name, one in named.items() if one is not None}
    before, after = [own[n] for n in ("language",) if n in own], [own[n] for n in ("decontaminate", "pii") if n in own]
    return (*before, *config.filters, *after)

"""Configuration of a data set. Imports nothing heavy, since the command line reads it."""

from typing import Literal

from pydantic import Field, model_validator

from ropewalk.cluster.input_paths import DataPath, DataPaths
from ropewalk.cluster.section import Section
from ropewalk.datapipe.dedup.paragraphs.config import Paragraphs
from ropewalk.datapipe.filters.decontamination.filter import Decontaminate
from ropewalk.datapipe.filters.language.filter import Language
from ropewalk.datapipe.filters.privacy.filter import PersonalData
from ropewalk.datapipe.filters.registry import Filters
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.tokens.config import Augment, TokenizerChoice


class Balance(Section):
    """Re-weight sources or languages by repeating or leaving out documents."""

    by: Literal["source", "language"] = Field(
        default="source", description="balance sources, or languages as identified by py3langid (`und`: undetermined)"
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="{SOURCE or LANGUAGE: share of the training text}; all others share the rest by their size",
    )
    temperature: float = Field(
        default=1,
        gt=0,
        le=1,
        description="shares are proportional to size^temperature: 1 changes nothing, near 0 all sources weigh the same",
    )
    max_epochs: float = Field(
        default=4, ge=1, le=10_000, description="maximum number of repetitions of a source, even if its share is then not reached"
    )

    @model_validator(mode="after")
    def _shares(self) -> "Balance":
        if any(weight < 0 for weight in self.weights.values()) or sum(self.weights.values()) > 1 + 1e-9:
            raise ValueError(f"weights are shares: none may be below 0, and their sum must be at most 1, not {self.weights}")
        if self.weights and self.temperature != 1:
            raise ValueError("set weights or temperature, not both")
        return self


class DataSetConfig(ReadRules):
    """Configuration of a data set: everything that determines its bytes, and its destination."""

    input: DataPaths = Field(
        min_length=1,
        description="files, directories (names with a leading dot are skipped) or globs (** too) of .jsonl[.gz|.zst],"
        " .parquet, .warc[.gz], .wet[.gz] or text; any fsspec URL; or a name on the hub (ORG/NAME)",
    )
    output: DataPath = Field(description="directory of the data set; any fsspec URL")
    tokenizer: TokenizerChoice = Field(description="tokenizer to train or to use")
    filters: Filters = Field(
        default=(),
        description="filters that drop documents, in order: names, or {name: {option: value}}; built in: gopher_quality,"
        " gopher_repetition, c4, fineweb, min_words",
    )
    near_duplicates: NearDuplicates | None = Field(
        default=None, description="drop near-duplicates of other documents, such as {similarity: 0.8}; unset: off"
    )
    language: Language | None = Field(default=None, description="languages to keep, applied before all filters; unset: all")
    decontaminate: Decontaminate | None = Field(
        default=None, description="drop documents that contain items of evaluation sets, applied after the filters; unset: off"
    )
    pii: PersonalData | None = Field(
        default=None, description="replace personal data by placeholders, after all filters; unset: off"
    )
    augment: Augment | None = Field(
        default=None, description="rewrite training documents before tokenization, such as {fim: {rate: 0.5}}; unset: off"
    )
    balance: Balance | None = Field(
        default=None,
        description="shares of sources or languages in the training text, such as {by: language, temperature: 0.5}; unset: off",
    )
    paragraphs: Paragraphs | None = Field(
        default=None, description="remove paragraphs that occur in an earlier document, such as {of: lines}; unset: off"
    )
    validation_fraction: float = Field(
        default=0.01, ge=0, le=0.5, description="share of documents in the validation split, chosen by a hash of the id"
    )
    shard_mib: float | None = Field(
        default=None, gt=0, le=1024, description="text per shard, MiB; unset: a 64th of all text, between 4 and 256"
    )


def stages(config: DataSetConfig) -> Filters:
    """Return all filters of pass 1 in order: language, the user's filters, decontamination, personal data."""
    sections = {"language": config.language, "decontaminate": config.decontaminate, "pii": config.pii}
    entries = {name: {name: section.model_dump(mode="json")} for name, section in sections.items() if section is not None}
    before = [entries[name] for name in ("language",) if name in entries]
    after = [entries[name] for name in ("decontaminate", "pii") if name in entries]
    return (*before, *config.filters, *after)

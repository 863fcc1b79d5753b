"""Manifest of a data set: its contents, its inputs, and the checksums that verify it."""

import json
from collections.abc import Iterable
from typing import Any, Literal

import xxhash
from pydantic import Field, ValidationError

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.section import Section
from ropewalk.cluster.storage import StoragePath

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2
CHUNK_BYTES = 1 << 24
ADDED = {"counts", "near_duplicates", "mixture", "versions"}

Split = Literal["train", "validation"]
TokenType = Literal["uint16", "uint32"]


class TokenizerRecord(Section):
    """The tokenizer of a data set; `hash` is over its tokenizer.json, `path` is relative to the data set."""

    name: str
    hash: str
    vocabulary: int = Field(gt=0)
    path: str = "tokenizer"
    end_of_document: int = Field(ge=0)
    backend: str = "tokenizers"
    version: str


class Shard(Section):
    """One Arrow file: `bytes` is the size of the documents' text in UTF-8, `size` that of the file.

    Tokens start at byte `tokens_at`, as one array; `blocks` is the checksum of the checksums of the file's blocks.
    """

    path: str
    split: Split
    documents: int = Field(ge=0)
    tokens: int = Field(ge=0)
    bytes: int = Field(ge=0)
    size: int = Field(ge=0)
    checksum: str = Field(pattern=r"^xxh3:[0-9a-f]{32}$")
    tokens_at: int = Field(ge=0)
    blocks: str = Field(pattern=r"^xxh3:[0-9a-f]{32}$")


class SplitRecord(Section):
    """Number of shards of a split, and tokens of its longest one."""

    shards: int = 0
    longest: int = 0


class TableRecord(Section):
    """The table of all shards, a file beside the manifest."""

    checksum: str = ""
    train: SplitRecord = SplitRecord()
    validation: SplitRecord = SplitRecord()

    def of_split(self, split: str) -> SplitRecord:
        """Return the record of a split; an empty one for a name that is none."""
        return {"train": self.train, "validation": self.validation}.get(split, SplitRecord())


class Count(Section):
    """Documents, tokens and UTF-8 bytes of text."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> "Count":
        shards = list(shards)
        return cls(
            documents=sum(s.documents for s in shards), tokens=sum(s.tokens for s in shards), bytes=sum(s.bytes for s in shards)
        )


class Totals(Count):
    """Sums over both splits, and of each split."""

    train: Count = Count()
    validation: Count = Count()

    @classmethod
    def of_shards(cls, shards: Iterable[Shard]) -> "Totals":
        """Sum over a data set's shards."""
        shards = list(shards)
        train = Count.of(s for s in shards if s.split == "train")
        validation = Count.of(s for s in shards if s.split == "validation")
        return cls(**Count.of(shards).model_dump(), train=train, validation=validation)


class Rejected(Section):
    """Number of dropped documents by reason, and the files that list them."""

    total: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)
    files: tuple[str, ...] = ()


class NearRecord(Section):
    """Result of near-duplicate search: candidates by MinHash, pairs compared, similar pairs, clusters by size."""

    candidates: int
    compared: int
    similar: int
    clusters: int
    sizes: dict[str, int]


class InputRecord(Section):
    """One input file: its size and checksum, and the number of its documents kept and rejected."""

    path: str
    size: int
    checksum: str
    documents: int
    rejected: int
    damage: str | None = None  # reason why reading stopped before its end


class Manifest(Section):
    """Content of manifest.json. It is written last: its presence means that the data set is complete."""

    schema_version: Literal[2] = 2
    tokenizer: TokenizerRecord
    token_type: TokenType
    table: TableRecord = TableRecord()
    shards: tuple[Shard, ...] = ()  # for people and other programs; empty if there are too many
    totals: Totals
    rejected: Rejected = Rejected()
    near_duplicates: NearRecord | None = None
    counts: dict[str, int] = Field(default_factory=dict)  # changes by filters: `c4.javascript` is a number of lines
    mixture: dict[str, dict[str, float]] = Field(default_factory=dict)  # epochs and share of each source, if balanced
    renamed_ids: int = 0  # documents whose id another text already had
    inputs: tuple[InputRecord, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)  # version of each input on an object store, such as its ETag
    config: dict[str, Any] = Field(default_factory=dict)
    hash: str = ""

    def computed_hash(self) -> str:
        """Return `xxh3:...` over the canonical JSON of all fields but `hash`; fields of later versions count only if set."""
        values = self.model_dump(mode="json", exclude={"hash"})
        return hash_of({name: value for name, value in values.items() if value or name not in ADDED})


def hash_of(value: object) -> str:
    """Return `xxh3:<32 hex>` over the canonical JSON of plain values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return checksum_of(text.encode())


def checksum_of(content: Any) -> str:
    """Return `xxh3:<32 hex>` over bytes or a buffer."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(content)}"


def checksum_of_file(folder: StoragePath, name: str) -> str:
    """Return `xxh3:<32 hex>` over a file's bytes, in bounded memory. Raises FileNotFoundError."""
    digest, size = xxhash.xxh3_128(), folder.size(name)
    for start in range(0, size, CHUNK_BYTES):
        digest.update(folder.read(name, start, min(start + CHUNK_BYTES, size)))
    return f"xxh3:{digest.hexdigest()}"


def write_manifest(data_set: StoragePath, manifest: Manifest) -> Manifest:
    """Seal and write the manifest, which completes the data set."""
    sealed = manifest.model_copy(update={"hash": manifest.computed_hash()})
    text = json.dumps(sealed.model_dump(mode="json"), indent=1, ensure_ascii=False)
    data_set.write(MANIFEST_NAME, f"{text}\n".encode())
    return sealed


def read_manifest(data_set: StoragePath) -> Manifest:
    """Read the manifest of a data set. Raises DataError if it is missing, not readable, damaged, or of another version."""
    where = f"{data_set.url}/{MANIFEST_NAME}"
    try:
        raw = data_set.read(MANIFEST_NAME)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{where}: no such file; the data set is not complete: run `ropewalk run preprocess`, or check the path"
        ) from None
    except PermissionError as error:
        raise DataError(f"{where}: {error.strerror or error}; ask the owner of the data set for read permission") from None
    try:
        values = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); the file is damaged: make the data set again") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{where}: schema version {version!r}, but this program reads version {SCHEMA_VERSION}; make the data set again"
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{where}: {key}: {problem['msg']}; the file is damaged: make the data set again") from None
    if manifest.hash != manifest.computed_hash():
        raise DataError(f"{where}: its content does not match its hash {manifest.hash!r}; make the data set again")
    return manifest

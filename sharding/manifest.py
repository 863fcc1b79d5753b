"""The manifest that makes a checkpoint complete, and the verification of a checkpoint's files."""

import json
from collections.abc import Iterable
from typing import Any

import xxhash
from pydantic import Field, ValidationError

from ropewalk.cluster.config import Section
from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.layout import MANIFEST_NAME
from ropewalk.sharding.storage import checksum

_READ_BYTES = 64 << 20


class FileRecord(Section):
    """One file of a checkpoint."""

    path: str
    size: int = Field(ge=0)
    checksum: str


class CheckpointManifest(Section):
    """Content of a checkpoint, and the attempt that saved it. All state but the tensors is here, as plain values."""

    schema_version: int = 1
    step: int = Field(ge=0)
    position: int = Field(ge=0, description="data position: number of the next sample of the run")
    config_hash: str
    identity: dict[str, Any] = Field(description="the model fingerprint, of which config_hash is the hash")
    world_size: int = Field(ge=1)
    attempt: int
    group: int = 0
    files: list[FileRecord]
    index: str = Field(description="the file that locates each tensor")
    progress: dict[str, Any] = Field(default_factory=dict, description="running figures of the training loop")


def hash_values(values: dict[str, Any]) -> str:
    """Hash plain values, such as a model fingerprint, independent of the order of their keys."""
    return checksum(xxhash.xxh3_128(json.dumps(values, sort_keys=True).encode()))


def dump_manifest(manifest: CheckpointManifest) -> bytes:
    """Serialize a manifest with a checksum of itself, since a flipped digit of its step would go unnoticed."""
    body = manifest.model_dump(mode="json")
    return (json.dumps({"checksum": hash_values(body), **body}, indent=1) + "\n").encode()


def read_manifest(folder: StoragePath) -> CheckpointManifest:
    """Read the manifest of a checkpoint's directory. Raises CheckpointError with the problem."""
    try:
        raw = folder.read(MANIFEST_NAME)
    except FileNotFoundError:
        raise CheckpointError(f"{folder.url}: no {MANIFEST_NAME}, the save was interrupted") from None
    try:
        body = json.loads(raw)
        manifest = CheckpointManifest.model_validate({k: v for k, v in body.items() if k != "checksum"})
    except (ValueError, ValidationError, AttributeError) as error:
        raise CheckpointError(f"{folder.url}/{MANIFEST_NAME}: damaged: {str(error).splitlines()[0]}") from None
    if dump_manifest(manifest) != raw:
        raise CheckpointError(f"{folder.url}/{MANIFEST_NAME}: damaged: it does not match its own checksum")
    return manifest


def problems(folder: StoragePath, files: Iterable[FileRecord]) -> list[str]:
    """Verify files of a checkpoint by reading them; returns the problems: missing, wrong size, wrong checksum."""
    problems_found = []
    for file in files:
        try:
            size = folder.size(file.path)
            if size != file.size:
                problems_found.append(f"{file.path} has {size} bytes instead of {file.size}")
            elif _checksum_of(folder, file) != file.checksum:
                problems_found.append(f"{file.path} does not match its checksum")
        except FileNotFoundError:
            problems_found.append(f"{file.path} is missing")
    return problems_found


def _checksum_of(folder: StoragePath, file: FileRecord) -> str:
    digest = xxhash.xxh3_128()
    for start in range(0, file.size, _READ_BYTES):
        digest.update(folder.read(file.path, start, min(start + _READ_BYTES, file.size)))
    return checksum(digest)


def config_diff(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Describe the keys in which two model fingerprints differ, with both values, for an error message."""
    keys = [k for k in sorted({*saved, *wanted}) if saved.get(k) != wanted.get(k)]
    return "; ".join(f"{k} is {saved.get(k)!r} there and {wanted.get(k)!r} here" for k in keys[:6])

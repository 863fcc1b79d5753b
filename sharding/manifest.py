"""The manifest that makes a checkpoint complete, and how to tell whether one is intact."""

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
    """What a checkpoint holds, and which attempt saved it. All state that is not a tensor is here, as plain values."""

    schema_version: int = 1
    step: int = Field(ge=0)
    position: int = Field(ge=0, description="data position: the next sample of the run")
    config_hash: str
    identity: dict[str, Any] = Field(description="the model fingerprint that config_hash is the hash of")
    world_size: int = Field(ge=1)
    attempt: int
    group: int = 0
    files: list[FileRecord]
    index: str = Field(description="the file that says where each tensor lies")
    progress: dict[str, Any] = Field(default_factory=dict, description="running figures of the training loop")


def fingerprint_hash(fingerprint: dict[str, Any]) -> str:
    """A hash of a model fingerprint that does not depend on the order of its keys."""
    return checksum(xxhash.xxh3_128(json.dumps(fingerprint, sort_keys=True).encode()))


def dump_manifest(manifest: CheckpointManifest) -> bytes:
    """A manifest as bytes for the disk, with a checksum of itself: a flipped digit of its step would be silent otherwise."""
    body = manifest.model_dump(mode="json")
    return (json.dumps({"checksum": _own_checksum(body), **body}, indent=1) + "\n").encode()


def _own_checksum(body: dict[str, Any]) -> str:
    return checksum(xxhash.xxh3_128(json.dumps(body, sort_keys=True).encode()))


def read_manifest(place: StoragePath) -> CheckpointManifest:
    """The manifest of a checkpoint's directory. Raises CheckpointError that says what is wrong."""
    try:
        raw = place.read(MANIFEST_NAME)
    except FileNotFoundError:
        raise CheckpointError(f"{place.url}: no {MANIFEST_NAME}, the save was cut short") from None
    try:
        body = json.loads(raw)
        manifest = CheckpointManifest.model_validate({k: v for k, v in body.items() if k != "checksum"})
    except (ValueError, ValidationError, AttributeError) as error:
        raise CheckpointError(f"{place.url}/{MANIFEST_NAME}: damaged: {str(error).splitlines()[0]}") from None
    if dump_manifest(manifest) != raw:
        raise CheckpointError(f"{place.url}/{MANIFEST_NAME}: damaged: it does not match its own checksum")
    return manifest


def problems(place: StoragePath, files: Iterable[FileRecord]) -> list[str]:
    """What is wrong with these files of a checkpoint: missing, a wrong size, wrong bytes. Reads all of them."""
    found = []
    for file in files:
        try:
            size = place.size(file.path)
            if size != file.size:
                found.append(f"{file.path} has {size} bytes instead of {file.size}")
            elif _checksum_of(place, file) != file.checksum:
                found.append(f"{file.path} does not match its checksum")
        except FileNotFoundError:
            found.append(f"{file.path} is missing")
    return found


def _checksum_of(place: StoragePath, file: FileRecord) -> str:
    digest = xxhash.xxh3_128()
    for start in range(0, file.size, _READ_BYTES):
        digest.update(place.read(file.path, start, min(start + _READ_BYTES, file.size)))
    return checksum(digest)


def config_diff(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The keys in which two model fingerprints differ, with both values, for an error message."""
    keys = [k for k in sorted({*saved, *wanted}) if saved.get(k) != wanted.get(k)]
    return "; ".join(f"{k} is {saved.get(k)!r} there and {wanted.get(k)!r} here" for k in keys[:6])

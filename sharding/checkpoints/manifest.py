"""The manifest that makes a checkpoint complete: its files, and the tensors whose pieces they hold."""

import json
from typing import Any

import xxhash
from pydantic import Field, ValidationError

from ropewalk.cluster.errors import CheckpointError
from ropewalk.cluster.section import Section
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.file_layout import FileLayout, StoredTensor
from ropewalk.sharding.checkpoints.layout import MANIFEST_NAME
from ropewalk.sharding.checkpoints.state import join_name, split_name
from ropewalk.sharding.placement import Split


class FileRecord(Section):
    """One file of a checkpoint."""

    path: str
    size: int = Field(ge=0)
    checksum: str = Field(description="of header and table, which has the checksums of all blocks")


class TensorTable(Section):
    """Names, shapes, dtypes and placements of all tensors, each written once."""

    mesh: dict[str, int] = Field(default_factory=dict, description="axis → size; ranks are numbered row by row")
    placements: list[tuple[Split, ...]] = Field(default_factory=list, description="the distinct ones")
    parameters: list[tuple[str, tuple[int, ...], int]] = Field(
        default_factory=list, description="name, shape and number of the placement"
    )
    kinds: dict[str, list[int]] = Field(default_factory=dict, description="kind and dtype → numbers of its parameters")

    @classmethod
    def of(cls, tensors: dict[str, StoredTensor], mesh: dict[str, int]) -> "TensorTable":
        placements = list(dict.fromkeys(tensor.placement for tensor in tensors.values()))
        parameters: dict[tuple[str, tuple[int, ...], int], int] = {}
        kinds: dict[str, list[int]] = {}
        for name, tensor in tensors.items():
            kind, parameter = split_name(name)
            entry = parameter, tensor.shape, placements.index(tensor.placement)
            kinds.setdefault(f"{kind}.{tensor.dtype}", []).append(parameters.setdefault(entry, len(parameters)))
        return cls(mesh=mesh, placements=placements, parameters=list(parameters), kinds=kinds)

    def layout(self) -> FileLayout:
        tensors = {}
        for key, numbers in self.kinds.items():
            kind, _, dtype = key.rpartition(".")
            for parameter, shape, placement in (self.parameters[number] for number in numbers):
                tensors[join_name(kind, parameter)] = StoredTensor(shape, dtype, self.placements[placement])
        return FileLayout(tensors, tuple(self.mesh.values()))


class CheckpointManifest(Section):
    """Content of a checkpoint, and the attempt that saved it. All state but the tensors is here, as plain values."""

    schema_version: int = 2
    step: int = Field(ge=0)
    position: int = Field(ge=0, description="data position: number of the next sample of the run")
    config_hash: str
    identity: dict[str, Any] = Field(description="the model fingerprint, of which config_hash is the hash")
    world_size: int = Field(ge=1)
    attempt: int
    group: int = 0
    time: float = Field(default=0.0, description="when the save began, in seconds since the epoch")
    files: list[FileRecord]
    tensors: TensorTable = Field(default_factory=TensorTable)
    progress: dict[str, Any] = Field(default_factory=dict, description="running figures of the training loop")


def checksum(data: bytes) -> str:
    """Return a checksum as in manifests, `xxh3:<32 hex>`."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"


def hash_values(values: dict[str, Any]) -> str:
    """Hash plain values, such as a model fingerprint, independent of the order of their keys."""
    return checksum(json.dumps(values, sort_keys=True).encode())


def dump_manifest(manifest: CheckpointManifest) -> bytes:
    """Serialize a manifest, a line for each key, with a checksum of itself: a flipped digit of its step would go unnoticed."""
    body = manifest.model_dump(mode="json")
    lines = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in body.items())
    return ("{\n" + ",\n".join([f'"checksum": "{hash_values(body)}"', *lines]) + "\n}\n").encode()


def file_name(manifest: CheckpointManifest, rank: int) -> str:
    """Return the name of a rank's file. It names the group of ranks too: an earlier one must not overwrite what is committed."""
    return f"{manifest.attempt:04d}-{manifest.group:06d}-rank-{rank:05d}.safetensors"


def rank_of(name: str) -> int:
    """Return the rank in the name of a file, which may follow that of a copy."""
    return int(name.removesuffix(".safetensors").rpartition("-")[2])


def read_manifest(folder: StoragePath) -> CheckpointManifest:
    """Read the manifest of a checkpoint's directory. Raises CheckpointError with the problem."""
    try:
        raw = folder.read(MANIFEST_NAME)
    except FileNotFoundError:
        raise CheckpointError(f"{folder.url}: no {MANIFEST_NAME}, the save was interrupted") from None
    return parse_manifest(raw, f"{folder.url}/{MANIFEST_NAME}")


def parse_manifest(raw: bytes, where: str) -> CheckpointManifest:
    """Parse a manifest. Raises CheckpointError with the problem; `where` names the file in it."""
    try:
        body = json.loads(raw)
        manifest = CheckpointManifest.model_validate({k: v for k, v in body.items() if k != "checksum"})
    except (ValueError, ValidationError, AttributeError) as error:
        raise CheckpointError(f"{where}: damaged: {str(error).splitlines()[0]}") from None
    if dump_manifest(manifest) != raw:
        raise CheckpointError(f"{where}: damaged: it does not match its own checksum")
    return manifest


def config_diff(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Describe the keys in which two model fingerprints differ, with both values, for an error message."""
    keys = [k for k in sorted({*saved, *wanted}) if saved.get(k) != wanted.get(k)]
    return "; ".join(f"{k} is {saved.get(k)!r} there and {wanted.get(k)!r} here" for k in keys[:6])

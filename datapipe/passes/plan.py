"""The plan of a data set (inputs and configuration), written before any work, so that a restart goes on or says what differs."""

import json
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.filters.decontamination.items import checksums
from ropewalk.datapipe.inputs.files import InputFile
from ropewalk.datapipe.inputs.streams import place_of
from ropewalk.datapipe.manifest import MANIFEST_NAME, Manifest, checksum_of_file, read_manifest
from ropewalk.datapipe.passes.config import DataSetConfig
from ropewalk.datapipe.tokens.tokenizer import FOLDER, tokenizer_checksum

WORK = ".work"
PLAN_NAME = "plan.json"
OFF_BY_DEFAULT = ("filters", "near_duplicates", "language", "decontaminate", "pii", "balance", "augment", "paragraphs")
WORK_AREA = 3  # of which kind it is: files that another version of this program left cannot be gone on with
LIBRARIES = {"language": "py3langid", "pii": "phonenumberslite"}  # whose tables decide, by key


def deciding_keys(config: DataSetConfig, seed: int) -> dict[str, Any]:
    """The keys of the configuration that decide the data set's bytes, as plain values; what is off by default only where set."""
    values = {name: value for name, value in config.model_dump(mode="json").items() if name in DataSetConfig.model_fields}
    del values["output"]
    if values["main_content"]:
        del values["main_content"]
    for name in OFF_BY_DEFAULT:
        if not values[name]:
            del values[name]
    if config.tokenizer.backend == "tokenizers":
        del values["tokenizer"]["backend"]
    if config.balance and config.balance.by == "source":
        del values["balance"]["by"]
    if config.decontaminate:
        values["decontaminate"]["checksums"] = checksums(config.decontaminate.against)
    return {**values, "seed": seed}


def find_complete(output: StoragePath, keys: dict[str, Any], files: Sequence[InputFile]) -> Manifest | None:
    """The manifest if the data set of these keys and files is complete. Raises DataError if another one lies there."""
    if not output.exists(MANIFEST_NAME):
        return None
    manifest = read_manifest(output)
    differing = _differing(manifest.config, keys)
    sizes = {record.path: record.size for record in manifest.inputs}
    if not differing and sizes != {f.url: f.size for f in files}:
        differing = [_changed_file(sizes, {f.url: f.size for f in files})]
    differing = differing or _other_tokenizer(output, keys) or _rewritten(output, manifest, files)
    if differing:
        raise DataError(
            f"{output.url}: a data set made otherwise lies here: {'; '.join(differing)}; choose another output, or delete it"
        )
    return manifest


def begin_or_resume(output: StoragePath, work: StoragePath, keys: dict[str, Any], files: Sequence[InputFile]) -> None:
    """Write the plan, or check that the one of an earlier start is the same. Raises DataError if it is not."""
    versions = {
        "unicode": unicodedata.unidata_version,
        **{name: version(name) for name in ("pyarrow", "tokenizers")},
        "work area": WORK_AREA,
    }
    plan = {"config": keys, "inputs": {f.url: [f.size, f.version] for f in files}, "versions": versions}
    try:
        found = json.loads(work.read(PLAN_NAME))
    except FileNotFoundError:
        strangers = [name for name in output.names() if name != WORK]
        if strangers:
            raise DataError(
                f"{output.url}: not empty (it holds {strangers[0]!r}) and no data set; choose another output, or empty it"
            ) from None
        work.write(PLAN_NAME, json.dumps(plan).encode())
        return
    differing = _differing(found["config"], keys) or _differing(found.get("versions", {}), versions)
    if not differing and found["inputs"] != plan["inputs"]:
        differing = [_changed_file(found["inputs"], plan["inputs"])]
    differing = differing or _other_tokenizer(output, keys)
    if differing:
        raise DataError(
            f"{output.url}: a half-finished data set lies here, made otherwise: {'; '.join(differing)};"
            " restore these values to go on, or delete the directory to start anew"
        )


def _other_tokenizer(output: StoragePath, keys: dict[str, Any]) -> list[str]:
    """Whether another tokenizer than the data set's own copy lies at `tokenizer.path` now."""
    path = keys["tokenizer"]["path"]
    if not path:
        return []
    now = tokenizer_checksum(path)
    try:
        own = checksum_of_file(output, f"{FOLDER}/tokenizer.json")
    except FileNotFoundError:
        return []
    return [f"the tokenizer at {path} was {own}, is {now}"] if now not in {None, own} else []


def remote_versions(files: Sequence[InputFile]) -> dict[str, str]:
    """The version of each input on an object store that tells one, by its URL."""
    return {file.url: file.version for file in files if not _on_a_disk(file) and file.version}


def _on_a_disk(file: InputFile) -> bool:
    """Whether the input lies on this machine's file systems, where a new time says little."""
    return "://" not in file.url or file.url.startswith(("file://", "local://"))


def _rewritten(output: StoragePath, manifest: Manifest, files: Sequence[InputFile]) -> list[str]:
    """An input of the same size that has changed since: an object of another version, or a local file that is newer than the
    data set and holds something else.

    What a local file was that was read in pieces is not known: its checksum is that of its pieces.
    """
    for url, now in remote_versions(files).items():
        if (was := manifest.versions.get(url, now)) != now:
            return [f"input {url} changed since (it was {was}, is {now})"]
    if output.local is None:
        return []
    made = (output.local / MANIFEST_NAME).stat().st_mtime
    known = {record.path: record.checksum for record in manifest.inputs if record.damage is None}
    for file in files:
        was = known.get(file.url, "")
        newer = _on_a_disk(file) and float(file.version or 0) > made
        if newer and was.startswith("xxh3:") and (now := checksum_of_file(*place_of(file.url))) != was:
            return [f"input {file.url} changed since (it was {was}, is {now})"]
    return []


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Which keys differ, with both values."""
    return [
        f"{key} was {json.dumps(old.get(key))}, is {json.dumps(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _changed_file(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first input file that differs, in words."""
    for path in sorted({*old, *new}):
        if path not in new:
            return f"input {path} is gone"
        if path not in old:
            return f"input {path} is new"
        if old[path] != new[path]:
            return f"input {path} changed since (it was {old[path]}, is {new[path]})"
    return ""

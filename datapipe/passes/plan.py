"""Plan of a data set (inputs, configuration, versions), written before any work, so that a restart resumes or is refused."""

import json
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.filters.decontamination.items import checksums
from ropewalk.datapipe.inputs.files import InputFile
from ropewalk.datapipe.inputs.streams import split_url
from ropewalk.datapipe.manifest import MANIFEST_NAME, Manifest, checksum_of_file, read_manifest
from ropewalk.datapipe.passes.config import DataSetConfig
from ropewalk.datapipe.passes.task import WORK
from ropewalk.datapipe.tokens.tokenizer import FOLDER, tokenizer_checksum

PLAN_NAME = "plan.json"
OFF_BY_DEFAULT = ("filters", "near_duplicates", "language", "decontaminate", "pii", "balance", "augment", "paragraphs")
WORK_AREA = 4  # format version: files of another version of this program cannot be resumed


def deciding_keys(config: DataSetConfig, seed: int) -> dict[str, Any]:
    """Return the keys that determine the data set's bytes, as plain values; keys that are off by default only if set."""
    values = {name: value for name, value in config.model_dump(mode="json").items() if name in DataSetConfig.model_fields}
    del values["output"]
    if values["main_content"]:
        del values["main_content"]
    for name in OFF_BY_DEFAULT:
        if not values[name]:
            del values[name]
    del values["tokenizer"]["backend"]  # the tokens are the same
    if config.balance and config.balance.by == "source":
        del values["balance"]["by"]
    if config.decontaminate:
        values["decontaminate"]["checksums"] = checksums(config.decontaminate.against)
    return {**values, "seed": seed}


def find_complete(output: StoragePath, keys: dict[str, Any], files: Sequence[InputFile]) -> Manifest | None:
    """Return the manifest if the data set of these keys and files is complete. Raises DataError if it is another data set."""
    if not output.exists(MANIFEST_NAME):
        return None
    manifest = read_manifest(output)
    differing = _differing(manifest.config, keys)
    sizes = {record.path: record.size for record in manifest.inputs}
    if not differing and sizes != {f.url: f.size for f in files}:
        differing = [_changed_file(sizes, {f.url: f.size for f in files})]
    differing = differing or _other_tokenizer(output, keys) or _find_rewritten(output, manifest, files)
    if differing:
        raise DataError(
            f"{output.url}: this directory already holds a data set made with other settings: {'; '.join(differing)};"
            " choose another output, or delete it"
        )
    return manifest


def refuse_other_settings(output: StoragePath, config: DataSetConfig, seed: int) -> None:
    """Raise DataError if a local output holds a data set, complete or not, made with other keys; inputs are not compared."""
    keys = deciding_keys(config.model_copy(update={"decontaminate": None}), seed)  # its files need not be accessible here
    if output.exists(MANIFEST_NAME):
        old, state, remedy = read_manifest(output).config, "already holds a data set", "choose another output, or delete it"
    elif output.child(WORK).exists(PLAN_NAME):
        old, state = json.loads(output.child(WORK).read(PLAN_NAME))["config"], "holds an unfinished data set"
        remedy = "restore these values to resume, or delete the directory to start over"
    else:
        return
    if differing := _differing({key: value for key, value in old.items() if key != "decontaminate"}, keys):
        raise DataError(f"{output.url}: this directory {state} made with other settings: {'; '.join(differing)}; {remedy}")


def begin_or_resume(output: StoragePath, work: StoragePath, keys: dict[str, Any], files: Sequence[InputFile]) -> None:
    """Write the plan, or check that an earlier attempt's plan is equal. Raises DataError if it is not."""
    versions = {
        "unicode": unicodedata.unidata_version,
        **{name: version(name) for name in ("pyarrow", "tokenizers")},
        "work area": WORK_AREA,
    }
    plan = {"config": keys, "inputs": {f.url: [f.size, f.version] for f in files}, "versions": versions}
    try:
        earlier = json.loads(work.read(PLAN_NAME))
    except FileNotFoundError:
        others = [name for name in output.names() if name != WORK]
        if others:
            raise DataError(
                f"{output.url}: holds {others[0]!r}, which is not part of a data set; choose another output, or empty it"
            ) from None
        work.write(PLAN_NAME, json.dumps(plan).encode())
        return
    differing = _differing(earlier["config"], keys) or _differing(earlier.get("versions", {}), versions)
    if not differing and earlier["inputs"] != plan["inputs"]:
        differing = [_changed_file(earlier["inputs"], plan["inputs"])]
    differing = differing or _other_tokenizer(output, keys)
    if differing:
        raise DataError(
            f"{output.url}: this directory holds an unfinished data set made with other settings: {'; '.join(differing)};"
            " restore these values to resume, or delete the directory to start over"
        )


def _other_tokenizer(output: StoragePath, keys: dict[str, Any]) -> list[str]:
    """Return a message if the tokenizer at `tokenizer.path` differs from the data set's copy, else nothing."""
    path = keys["tokenizer"]["path"]
    if not path:
        return []
    now = tokenizer_checksum(path)
    try:
        copied = checksum_of_file(output, f"{FOLDER}/tokenizer.json")
    except FileNotFoundError:
        return []
    return [f"the tokenizer at {path} was {copied}, is {now}"] if now not in {None, copied} else []


def remote_versions(files: Sequence[InputFile]) -> dict[str, str]:
    """Return the version of each input on an object store that has versions, by URL."""
    return {file.url: file.version for file in files if not _is_local(file) and file.version}


def _is_local(file: InputFile) -> bool:
    """Return True for a file of this machine, whose version is only a modification time."""
    return "://" not in file.url or file.url.startswith(("file://", "local://"))


def _find_rewritten(output: StoragePath, manifest: Manifest, files: Sequence[InputFile]) -> list[str]:
    """Return a message for an input of equal size that changed: an object with a new version, or a newer local file.

    A local file that was read in pieces cannot be compared: its checksum is over the pieces.
    """
    for url, now in remote_versions(files).items():
        if (was := manifest.versions.get(url, now)) != now:
            return [f"input {url} changed since (it was {was}, is {now})"]
    if output.local is None:
        return []
    completed = (output.local / MANIFEST_NAME).stat().st_mtime
    checksum_of = {record.path: record.checksum for record in manifest.inputs if record.damage is None}
    for file in files:
        was = checksum_of.get(file.url, "")
        newer = _is_local(file) and float(file.version or 0) > completed
        if newer and was.startswith("xxh3:") and (now := checksum_of_file(*split_url(file.url))) != was:
            return [f"input {file.url} changed since (it was {was}, is {now})"]
    return []


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Describe each key that differs, with both values."""
    return [
        f"{key} was {json.dumps(old.get(key))}, is {json.dumps(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _changed_file(old: dict[str, Any], new: dict[str, Any]) -> str:
    for path in sorted({*old, *new}):
        if path not in new:
            return f"input {path} is gone"
        if path not in old:
            return f"input {path} is new"
        if old[path] != new[path]:
            return f"input {path} changed since (it was {old[path]}, is {new[path]})"
    return ""

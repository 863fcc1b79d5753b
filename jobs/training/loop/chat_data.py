"""Checks at submission of the files that finetune and align train on: that they exist and hold records of the right kind."""

from pathlib import Path

from ropewalk.cluster.errors import DataError

PAIR, LABELLED, CONVERSATION = {"chosen", "rejected"}, {"completion", "label"}, {"messages", "conversations", "instruction"}


def check_conversations(path: str, local: Path) -> None:
    """Raise DataError unless `data` of finetune is a prepared data set of conversations, or files that may hold some."""
    from ropewalk.cluster.storage import StoragePath
    from ropewalk.datapipe.chat.config import KIND
    from ropewalk.datapipe.manifest import MANIFEST_NAME, read_manifest

    if (local / MANIFEST_NAME).is_file():
        if KIND not in read_manifest(StoragePath(local)).config:
            raise DataError(f"data: {path} holds text, not conversations; train on it with `ropewalk run pretrain data={path}`")
        return
    keys = _first_keys("data", path, local)
    if keys >= PAIR and not keys & CONVERSATION:
        raise DataError(
            f"data: {path} holds preference pairs (chosen, rejected), not conversations; train on them with"
            f" `ropewalk run align data={path}`"
        )
    if keys in ({"text"}, {"id", "text"}):
        raise DataError(
            f"data: {path} holds documents (text), not conversations; make a data set of them with `ropewalk run preprocess`, and"
            " train on it with pretrain"
        )


def check_preferences(key: str, path: str, local: Path, method: str) -> None:
    """Raise DataError if the file of an aligned model holds records that this method cannot use."""
    keys = _first_keys(key, path, local)
    if method == "grpo" or keys >= PAIR or (method == "kto" and keys >= LABELLED):
        return
    if keys >= LABELLED:
        raise DataError(f"{key}: {path} holds labelled answers (completion, label), which {method} does not use; set method=kto")
    if keys & CONVERSATION:
        needed = "completion and label" if method == "kto" else "chosen and rejected"
        raise DataError(
            f"{key}: {path} holds conversations, and {method} needs records with {needed}; train on conversations with"
            f" `ropewalk run finetune data={path}`"
        )


def _first_keys(key: str, path: str, local: Path) -> set[str]:
    """Return the keys of the first record of the first file. Raises DataError if there is no file that is read."""
    from ropewalk.datapipe.inputs.files import first_files
    from ropewalk.datapipe.inputs.keys import first_keys

    file = first_files(f"{key}:", path, local)[0]
    if file.kind == "text":
        raise DataError(f"{key}: {file.url} is plain text, not records; use .jsonl, .jsonl.gz, .jsonl.zst or .parquet")
    return first_keys(file)

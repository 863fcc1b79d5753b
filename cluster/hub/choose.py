"""Choice of the files of a repository that a key needs. Pickles and code are never among them."""

import fnmatch
import re
from collections.abc import Sequence
from typing import Literal

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.hub.source import RemoteFile

Need = Literal["model", "tokenizer", "data", "tokens", "file"]
# in the store
FOLDERS: dict[Need, str] = {"model": "models", "tokenizer": "tokenizers", "data": "data", "tokens": "data-sets", "file": "files"}

INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "*.tiktoken", "chat_template.jinja"),
    "config.json",
)
_MODEL = ("*.json", "*.txt", "*.safetensors", "*.model", "*.tiktoken", "*.jinja", "*.md", "LICENSE*")
_DATA = (
    *("*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.parquet", "*.json", "*.json.gz", "*.json.zst", "*.csv", "*.txt", "*.txt.gz"),
    *("*.warc", "*.warc.gz", "*.wet", "*.wet.gz", "*.arrow", "*.yaml", "*.yml", "*.jinja"),
)
_TOKENS = (".json", ".arrow", ".jinja", ".txt", ".model", ".html", ".md")
_ABOUT = ("dataset_infos.json", "dataset_info.json", "*.md")  # files that describe a repository of data
_SPLIT = re.compile(r"(?:^|[/_.-])(train(?:ing)?|test(?:ing)?|valid(?:ation)?|dev|eval(?:uation)?)(?=[/_.-]|$)", re.IGNORECASE)
_EVALUATION_SPLITS = ("valid", "dev", "test", "eval")  # of a task, the first that there is


def choose(files: Sequence[RemoteFile], need: Need, path: str, where: str) -> list[RemoteFile]:
    """Return the files that a key needs of a repository, or of the file, folder or glob `path` in it. Raises ConfigError.

    Of data without a path these are the files of the training split, for a task file the one of an evaluation split; all files
    if their names tell no splits. `where` begins the message: the key and the value.
    """
    if need == "model":
        return _model(files, where)
    if need == "tokenizer":
        chosen = _matching(files, _TOKENIZER)
        if not {"tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"} & {file.name for file in chosen}:
            raise ConfigError(f"{where}: has no tokenizer.json; name the repository of a model or tokenizer for transformers")
        return chosen
    if need == "tokens":
        return _tokens(files, path, where)
    return _data(files, need, path, where)


def _matching(files: Sequence[RemoteFile], patterns: Sequence[str]) -> list[RemoteFile]:
    return [file for file in files if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in patterns)]


def _model(files: Sequence[RemoteFile], where: str) -> list[RemoteFile]:
    top = [file for file in files if "/" not in file.name]
    names = {file.name for file in top}
    weights = [file for file in top if file.name.endswith(".safetensors")]
    usual = [file for file in weights if file.name.startswith(("model.", "model-", "adapter_model"))] or weights
    if INDEX in names:
        usual = [file for file in usual if re.fullmatch(r"model-\d+-of-\d+\.safetensors", file.name)] or usual
    elif "model.safetensors" in names:
        usual = [file for file in usual if file.name == "model.safetensors"]
    if "config.json" not in names:
        raise ConfigError(f"{where}: has no config.json; name the repository of a model for transformers")
    if not usual:
        pickles = sorted(file.name for file in files if file.name.endswith(_PICKLES))
        if pickles:
            raise ConfigError(
                f"{where}: has only pickled weights ({pickles[0]}), which can run code and are never fetched; name a repository"
                " or revision with .safetensors (the hub's page safetensors/convert makes one), or convert it on a machine of"
                " your own with save_pretrained, and name the directory"
            )
        raise ConfigError(f"{where}: has no weights (*.safetensors); name the repository of a model for transformers")
    return [*(file for file in _matching(top, _MODEL) if file not in weights), *usual]


def _tokens(files: Sequence[RemoteFile], path: str, where: str) -> list[RemoteFile]:
    """Return the files of a data set made by preprocess, in the folder `path`."""
    folder = f"{path}/" if path else ""
    if not any(file.name == f"{folder}manifest.json" for file in files):
        raise ConfigError(
            f"{where}: holds no data set of tokens (no manifest.json); make one: `ropewalk run preprocess input=hf://datasets/"
            "ORG/NAME output=DIR ...`"
        )
    return [file for file in files if file.name.startswith(folder) and file.name.endswith(_TOKENS)]


def _data(files: Sequence[RemoteFile], need: Need, path: str, where: str) -> list[RemoteFile]:
    readable = [file for file in _matching(files, _DATA) if not _matching([file], _ABOUT) and "/." not in f"/{file.name}"]
    if path:
        inside = [file for file in readable if file.name == path or file.name.startswith(f"{path}/")]
        chosen = inside or _matching(readable, [path])
        if not chosen:
            listed = ", ".join(file.name for file in readable[:3]) or "none"
            raise ConfigError(f"{where}: has no such file; files that can be read: {listed}{', ...' * (len(readable) > 3)}")
    else:
        chosen = _of_split(readable, need)
    if not chosen:
        raise ConfigError(f"{where}: has no file of data that can be read (.parquet, .jsonl, ...); name another data set")
    if need == "file" and len(chosen) != 1:
        names = ", ".join(file.name for file in chosen[:3])
        raise ConfigError(f"{where}: {len(chosen)} files fit ({names}, ...); name one: hf://datasets/ORG/NAME/{chosen[0].name}")
    return chosen


def _of_split(files: Sequence[RemoteFile], need: Need) -> list[RemoteFile]:
    splits = {file.name: {match.lower() for match in _SPLIT.findall(file.name)} for file in files}
    for wanted in ("train",) if need == "data" else _EVALUATION_SPLITS:
        chosen = [file for file in files if any(split.startswith(wanted) for split in splits[file.name])]
        if chosen:
            return chosen
    return list(files)

"""Tokenizer of a data set: trained on a sample of its documents or copied, and stored as a Hugging Face directory."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import tokenizers
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.process.scratch import scratch
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.manifest import TokenizerRecord, TokenType, checksum_of_file
from ropewalk.datapipe.tokens.fast import NAME as FAST
from ropewalk.datapipe.tokens.fast import FastTokenizer

END_OF_DOCUMENT = "<|endoftext|>"
FOLDER = "tokenizer"
KEPT_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """Files of a tokenizer, as in a Hugging Face directory."""

    name: str
    files: dict[str, bytes]


def train_tokenizer(texts: Iterable[str], vocabulary: int, marks: Sequence[str] = ()) -> TokenizerFiles:
    """Train a byte-level BPE like GPT-2's, with additional special tokens `marks`; deterministic."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_DOCUMENT, *marks],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer=trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_DOCUMENT,
        "eos_token": END_OF_DOCUMENT,
        "unk_token": END_OF_DOCUMENT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    files = {
        "tokenizer.json": bpe.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(settings, indent=1) + "\n").encode(),
    }
    return TokenizerFiles(name=f"bpe-{vocabulary}", files=files)


def take_tokenizer(path: str) -> TokenizerFiles:
    """Copy an existing tokenizer: a Hugging Face directory, a tokenizer.json (also by URL), or a name in the Hugging Face cache.

    Raises ConfigError if it does not exist or is not readable.
    """
    if path.endswith(".json"):
        folder, _, file = path.rpartition("/")
        return _read_folder(StoragePath(folder or "/"), file, path)
    if "://" in path or path.startswith("/"):
        directory = StoragePath(path)
        if not directory.exists():
            raise ConfigError(
                f"tokenizer.path: {path}: no such directory; use a Hugging Face directory or name, or a tokenizer.json"
            )
        if directory.exists("tokenizer.json"):
            return _read_folder(directory, "tokenizer.json", path)
        if directory.local is None:
            raise ConfigError(f"tokenizer.path: {path}: no tokenizer.json; save one there with save_pretrained")
    return _load_with_transformers(path)


def tokenizer_checksum(path: str) -> str | None:
    """Return `xxh3:<32 hex>` of the tokenizer.json at a path; None if there is none, or for a name on the hub."""
    if "://" not in path and not path.startswith("/"):
        return None
    folder, _, file = (path if path.endswith(".json") else f"{path.rstrip('/')}/tokenizer.json").rpartition("/")
    try:
        return checksum_of_file(StoragePath(folder or "/"), file)
    except FileNotFoundError:
        return None


def _read_folder(folder: StoragePath, file: str, path: str) -> TokenizerFiles:
    try:
        files = {"tokenizer.json": folder.read(file)}
        Tokenizer.from_str(files["tokenizer.json"].decode())
    except FileNotFoundError:
        raise ConfigError(f"tokenizer.path: {path}: no such file; check the path") from None
    except Exception as error:  # tokenizers raises bare Exception for invalid files
        raise ConfigError(
            f"tokenizer.path: {path}: not a valid tokenizer.json: {error}; save it again with save_pretrained"
        ) from None
    present = set(folder.names())
    files |= {name: folder.read(name) for name in KEPT_FILES if name in present}
    name = path.rstrip("/").removesuffix("/tokenizer.json").removesuffix(".json").rpartition("/")[2]
    return TokenizerFiles(name=name, files=files)


def _load_with_transformers(name: str) -> TokenizerFiles:
    """Load a tokenizer that only transformers can find in its cache, or convert."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds to import, and is rarely needed

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the cache and sentencepiece raise various types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"tokenizer.path: {name!r} is neither a local path nor in the Hugging Face cache ({reason}); submit the job, or run"
            " `ropewalk fetch`, where there is a network, or use a directory"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"tokenizer.path: {name}: no fast version (tokenizer.json); choose a tokenizer that has one")
    with scratch("t") as folder:
        tokenizer.save_pretrained(folder)
        return TokenizerFiles(
            name=name.rstrip("/").rpartition("/")[2], files=_read_folder(StoragePath(folder), "tokenizer.json", name).files
        )


@lru_cache(maxsize=1)
def _load(description: str) -> Tokenizer:
    """Load the library's tokenizer, which must not be changed afterwards; cached, since it takes 0.5 s."""
    tokenizer = Tokenizer.from_str(description)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # text that spells a special token is encoded as ordinary text, so that a document cannot end itself
    tokenizer.encode_special_tokens = True
    return tokenizer


@lru_cache(maxsize=1)
def _load_fast(description: str) -> FastTokenizer:
    return FastTokenizer(description, _load(description))


class Encoder:
    """Encodes texts to token ids, each followed by the end-of-document token.

    The backend `fastokens` raises FastTokenizerError where it is missing or gives other tokens than `tokenizers`.
    """

    def __init__(self, files: TokenizerFiles, backend: str = "tokenizers") -> None:
        self.files, self.backend = files, backend
        description = files.files["tokenizer.json"].decode()
        self.tokenizer = _load(description)
        self.fast = _load_fast(description) if backend == FAST else None
        ids = self.tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(ids.values()) + 1
        self.end_of_document = self._find_end(ids)
        narrow = self.vocabulary <= 1 << 16
        self.token_type: TokenType = "uint16" if narrow else "uint32"
        self.dtype: type[np.unsignedinteger] = np.uint16 if narrow else np.uint32

    def _find_end(self, ids: dict[str, int]) -> int:
        settings = json.loads(self.files.files.get("tokenizer_config.json", b"{}"))
        marks = json.loads(self.files.files.get("special_tokens_map.json", b"{}"))
        for token in (settings.get("eos_token"), marks.get("eos_token"), END_OF_DOCUMENT, "</s>", "<|end_of_text|>", "<eos>"):
            content = token.get("content") if isinstance(token, dict) else token
            if content in ids:
                return ids[content]
        raise ConfigError(
            f"tokenizer {self.files.name!r} has no end-of-document token; set eos_token in its tokenizer_config.json"
        )

    def special(self, token: str) -> int:
        """Return the id of a special token. Raises ConfigError if the tokenizer does not have it."""
        token_id = self.tokenizer.token_to_id(token)
        if token_id is None:
            raise ConfigError(
                f"augment.fim: tokenizer {self.files.name!r} has no token {token!r}; name its own token, or train a tokenizer"
            )
        return int(token_id)

    def encode(self, texts: Sequence[str]) -> Iterator[NDArray[np.unsignedinteger]]:
        """Encode each text and append the end-of-document token."""
        tokens, lengths = self.encode_flat(texts)
        yield from np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else ()

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
        """Return the concatenated tokens of all texts, with end-of-document tokens, and the number of tokens of each."""
        if self.fast is not None:
            ids, offsets = self.fast.encode(texts)
            return np.insert(ids, offsets[1:], self.end_of_document).astype(self.dtype), np.diff(offsets) + 1
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        lengths = np.array([len(encoding) + 1 for encoding in encodings], np.int64)
        tokens = np.full(int(lengths.sum()), self.end_of_document, self.dtype)
        at = 0
        for encoding in encodings:
            tokens[at : at + len(encoding)] = encoding.ids
            at += len(encoding) + 1
        return tokens, lengths

    def record(self) -> TokenizerRecord:
        """Return the tokenizer's record for the manifest; the hash is over tokenizer.json."""
        return TokenizerRecord(
            name=self.files.name,
            hash=f"xxh3:{xxhash.xxh3_128_hexdigest(self.files.files['tokenizer.json'])}",
            vocabulary=self.vocabulary,
            path=FOLDER,
            end_of_document=self.end_of_document,
            backend=self.backend,
            version=self.fast.version if self.fast else tokenizers.__version__,
        )


def write_tokenizer(output: StoragePath, work: StoragePath, tokenizer: TokenizerFiles) -> None:
    """Write the tokenizer into the data set, then the file in the work area that marks it as complete."""
    for name, data in sorted(tokenizer.files.items()):
        output.write(f"{FOLDER}/{name}", data)
    work.write("tokenizer.json", json.dumps({"name": tokenizer.name, "files": sorted(tokenizer.files)}).encode())


def read_tokenizer(output: StoragePath, work: StoragePath) -> TokenizerFiles | None:
    """Read the tokenizer of the data set, or return None if it is not complete."""
    try:
        mark = json.loads(work.read("tokenizer.json"))
        return TokenizerFiles(name=mark["name"], files={name: output.read(f"{FOLDER}/{name}") for name in mark["files"]})
    except FileNotFoundError:
        return None


def open_encoder(output: StoragePath, work: StoragePath, backend: str) -> Encoder:
    """Open the tokenizer of the data set. Raises DataError if it is gone."""
    files = read_tokenizer(output, work)
    if files is None:
        raise DataError(f"{output.url}: its tokenizer is gone; remove the directory and start over")
    return Encoder(files, backend)

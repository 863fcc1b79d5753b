"""Facts of a GGUF file that serving needs: context length, vocabulary size, tokenizer."""

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.cluster.errors import ConfigError

# value types of the format by number: fixed sizes, strings, arrays
_FIXED = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_HEAD = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of values
_VERSIONS = (2, 3)


class GgufFacts(NamedTuple):
    """Context, vocabulary and tokenizer of a file."""

    context: int  # in tokens
    vocabulary: int
    tokenizer: Path  # folder of the source model's tokenizer


def read_facts(gguf: Path) -> GgufFacts:
    """Read the facts of a file. Raises ConfigError if it is not a GGUF file or has no tokenizer beside it."""
    try:
        fields = read_fields(gguf)
        kind = str(fields["general.architecture"])
        context, vocabulary = int(fields[f"{kind}.context_length"]), int(fields["tokenizer.ggml.tokens"])
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ConfigError(f"{gguf} is not a GGUF file of a language model: {str(error)[:200] or type(error).__name__}") from None
    return GgufFacts(context, vocabulary, _tokenizer(gguf))


def read_fields(gguf: Path) -> dict[str, Any]:
    """Return the metadata of a file by name; of an array only its length, because a vocabulary takes seconds to read.

    Raises OSError, ValueError, struct.error for an invalid file.
    """
    with gguf.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, version, _, count = _HEAD.unpack_from(data)
        if magic != b"GGUF" or version not in _VERSIONS:
            raise ValueError(f"it has no header of version {' or '.join(map(str, _VERSIONS))}")
        reader = _Reader(data, _HEAD.size)
        return {reader.string(): reader.value(reader.number("I")) for _ in range(count)}


class _Reader:
    """Reads consecutive values."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at

    def number(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self.data, self.at)[0]
        self.at += struct.calcsize(f"<{form}")
        return value

    def string(self) -> str:
        size = int(self.number("Q"))
        self._pass(size)
        return self.data[self.at - size : self.at].decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _FIXED:
            return self.number(_FIXED[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        raise ValueError(f"it has a value of the unknown type {kind}")

    def _array(self) -> int:
        """Skip an array and return its length."""
        kind, count = self.number("I"), int(self.number("Q"))
        if kind in _FIXED:
            self._pass(count * struct.calcsize(f"<{_FIXED[kind]}"))
            return count
        for _ in range(count):
            if kind == _STRING:
                self._pass(8 + int.from_bytes(self.data[self.at : self.at + 8], "little"))
            else:
                self.value(kind)
        return count

    def _pass(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("it is cut short")


def _tokenizer(gguf: Path) -> Path:
    """Return the folder of the tokenizer: beside the file, or where the file was written (MODEL/gguf/FILE, RUN/gguf/FILE)."""
    for folder in (gguf.parent, gguf.parent.parent, gguf.parent.parent / "tokenizer"):
        if (folder / "tokenizer.json").is_file():
            return folder
    raise ConfigError(f"{gguf} has no tokenizer beside it; put the model's tokenizer.json and tokenizer_config.json there")

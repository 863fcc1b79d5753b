"""What must be known of a GGUF file before it is served: what it can see, how many tokens it knows, whose tokenizer it has."""

from pathlib import Path
from typing import NamedTuple

from cluster.errors import ConfigError


class GgufFacts(NamedTuple):
    """Facts of a file."""

    context: int  # tokens that the model can see
    vocabulary: int
    tokenizer: Path  # the folder of the tokenizer of the model that the file was made of


def read_facts(gguf: Path) -> GgufFacts:
    """Read the facts of a file. Raises ConfigError for a file that is none, or that has no tokenizer beside it."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(gguf).fields
        kind = str(fields["general.architecture"].contents())
        context = int(fields[f"{kind}.context_length"].contents())
        vocabulary = len(fields["tokenizer.ggml.tokens"].data)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ConfigError(f"{gguf} is not a GGUF file of a language model: {str(error)[:200] or type(error).__name__}") from None
    return GgufFacts(context, vocabulary, _tokenizer(gguf))


def _tokenizer(gguf: Path) -> Path:
    """The tokenizer of the model: beside the file, or where the file was made (MODEL/gguf/FILE, RUN/gguf/FILE)."""
    for folder in (gguf.parent, gguf.parent.parent, gguf.parent.parent / "tokenizer"):
        if (folder / "tokenizer.json").is_file():
            return folder
    raise ConfigError(f"{gguf} has no tokenizer beside it; put the model's tokenizer.json and tokenizer_config.json there")

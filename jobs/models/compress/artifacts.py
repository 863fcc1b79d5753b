"""A variant on disk, and opening it in the engine that serves it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.inference.gguf.llama_cpp import LlamaCpp
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.training.loop.architecture.model_record import open_weights

Engine = Literal["transformers", "llama.cpp"]
RECORD = "variant.json"


class LogProbModel(Protocol):
    """A model that returns log-probabilities for a sequence."""

    def log_probabilities(self, tokens: list[int]) -> torch.Tensor:
        """Return the log-probabilities [T, V] of the token after each token, in nats."""
        ...


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A built variant."""

    engine: Engine
    path: Path  # a Hugging Face directory, or a GGUF file
    zeros: float  # fraction of zeros in the layers' matrices before quantization
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the weights on disk."""
        files = [self.path] if self.path.is_file() else self.path.glob("*.safetensors")
        return sum(file.stat().st_size for file in files)

    def write(self, folder: Path) -> None:
        """Mark the variant's folder as complete."""
        write_json(folder / RECORD, {**asdict(self), "path": self.path.name})

    @classmethod
    def read(cls, folder: Path) -> "Artifact | None":
        """Return the variant in this folder, or None if none was completed."""
        if not (folder / RECORD).is_file():
            return None
        record = json.loads((folder / RECORD).read_text())
        return cls(**{**record, "path": folder / record["path"], "notes": tuple(record["notes"])})


@contextmanager
def opened(artifact: Artifact, *, context: int, threads: int) -> Iterator[LogProbModel]:
    """Open the variant in its engine; `context` is the longest sequence. Raises ConfigError if the engine cannot open it."""
    if artifact.engine == "llama.cpp":
        with LlamaCpp(artifact.path, context=context, threads=threads) as engine:
            yield _InLlamaCpp(engine)
    else:
        yield InTransformers(open_directory(artifact.path))


def open_directory(path: Path) -> Any:
    """Open a Hugging Face directory in its own number format, a quantized one with its library."""
    from transformers import AutoModelForCausalLM

    _check_quantized(path)
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto", trust_remote_code=False).eval().requires_grad_(False)


class InTransformers:
    """A model computed by transformers."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.no_grad()
    def log_probabilities(self, tokens: list[int]) -> torch.Tensor:
        """Return the log-probabilities [T, V] of the token after each token, in nats."""
        log_probs_TV: torch.Tensor = (
            self._model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().log_softmax(-1)
        )
        return log_probs_TV


class _InLlamaCpp:
    def __init__(self, engine: LlamaCpp) -> None:
        self._engine = engine

    def log_probabilities(self, tokens: list[int]) -> torch.Tensor:
        return torch.from_numpy(self._engine.log_probabilities(tokens))


def save(model: Any, opened: OpenModel, folder: Path) -> Path:
    """Write a transformers model and the tokenizer as a Hugging Face directory, atomically."""
    target, unfinished = folder / "model", folder / ".model.partial"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(unfinished)
    open_weights(unfinished)
    opened.tokenizer.save_pretrained(unfinished)
    unfinished.rename(target)
    return target


def _check_quantized(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "torchao":
        require_torchao()


def require_torchao() -> None:
    """Raise ConfigError unless torchao is installed."""
    try:
        import torchao  # type: ignore[import-not-found]  # noqa: F401 - an extra, without types
    except ImportError as error:
        raise ConfigError(
            f"torchao: is not installed ({error}); pip install 'ropewalk[compress]'. It makes every import of transformers 0.7 s "
            "slower; a separate environment avoids that"
        ) from None

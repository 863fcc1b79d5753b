"""Architectures that can be pruned, and the sizes of a model before and after."""

from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.training.pruning.config import Part, PruneConfig

# decoders with the layout of Llama: q, k, v, o; gate, up, down; two norms a layer
LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3"})


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a Llama-like model."""

    layers: int
    hidden: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """Read the sizes from a configuration of transformers. Raises ConfigError for another architecture."""
        check_architecture(config)
        heads = int(config.num_attention_heads)
        return cls(
            layers=int(config.num_hidden_layers),
            hidden=int(config.hidden_size),
            width=int(config.intermediate_size),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        )

    def cut(self, prune: PruneConfig) -> "Shape":
        """Return the sizes after pruning. Raises ConfigError for impossible sizes."""
        kv_heads = self.kv_heads if prune.kv_heads is None else count(prune.kv_heads, self.kv_heads, "kv_heads")
        heads = self.heads // self.kv_heads * kv_heads if prune.heads is None else count(prune.heads, self.heads, "heads")
        if self.heads == self.kv_heads and prune.heads is not None and prune.kv_heads is None:
            kv_heads = heads  # each head has its own keys and values
        if heads % kv_heads or heads // kv_heads > self.heads // self.kv_heads:
            least, most = kv_heads, self.heads // self.kv_heads * kv_heads
            raise ConfigError(
                f"heads: {heads} cannot be divided equally among {kv_heads} KV groups of {self.heads // self.kv_heads} heads;"
                f" choose a multiple of {least} up to {most}, or set kv_heads"
            )
        return Shape(
            layers=self.layers if prune.layers is None else count(prune.layers, self.layers, "layers"),
            hidden=self.hidden if prune.hidden is None else count(prune.hidden, self.hidden, "hidden"),
            width=self.width if prune.width is None else count(prune.width, self.width, "width"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=self.head_dim,
        )


def check_architecture(config: Any) -> None:
    """Raise ConfigError unless the architecture can be pruned."""
    kind = getattr(config, "model_type", None)
    if kind not in LLAMA_LIKE:
        raise ConfigError(
            f"prune: the architecture {kind!r} is not supported, only {', '.join(sorted(LLAMA_LIKE))}; "
            "name another teacher, or a student by preset, path or config"
        )


def count(part: Part, total: int, key: str) -> int:
    """Return the number of parts to keep. Raises ConfigError for more than `total`."""
    number = max(1, round(part * total)) if isinstance(part, float) else part
    if number > total:
        raise ConfigError(f"{key}: {number} of {total} cannot be kept; choose at most {total}")
    return number

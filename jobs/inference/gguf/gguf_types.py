"""The number formats of GGUF by name, and the format of each tensor. Light to import, for configurations."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class GgufType:
    """A file's format: of its matrices, its embeddings, and the matrices whose rows its blocks do not divide."""

    name: str
    file_type: int  # llama_ftype, displayed by llama.cpp
    matrices: str
    embeddings: str  # tied embeddings are the output matrix too
    fallback: str  # of a matrix whose row length is no multiple of 256
    values: str = ""  # of the attention's values, which are few and lose most; empty: as other matrices


# Rows that are no multiple of 256 long fall back to blocks of 32 at about the same bits a weight: 4.5 for 4.5, 6 for 5.5, 8.5 for
# 6.6. `write_gguf` returns the number of tensors of each format.
GGUF_TYPES: dict[str, GgufType] = {
    kind.name: kind
    for kind in (
        GgufType("F32", 0, "F32", "F32", "F32"),
        GgufType("F16", 1, "F16", "F16", "F16"),
        GgufType("BF16", 32, "BF16", "BF16", "BF16"),
        GgufType("Q8_0", 7, "Q8_0", "Q8_0", "Q8_0"),
        GgufType("Q6_K", 18, "Q6_K", "Q6_K", "Q8_0"),
        GgufType("Q5_K", 16, "Q5_K", "Q6_K", "Q5_1"),
        GgufType("Q5_1", 9, "Q5_1", "Q5_1", "Q5_1"),
        GgufType("Q5_0", 8, "Q5_0", "Q5_0", "Q5_0"),
        GgufType("Q4_K", 14, "Q4_K", "Q5_0", "IQ4_NL", values="Q5_0"),
        GgufType("Q4_1", 3, "Q4_1", "Q4_1", "Q4_1"),
        GgufType("Q4_0", 2, "Q4_0", "Q4_0", "Q4_0"),
        GgufType("IQ4_NL", 25, "IQ4_NL", "IQ4_NL", "IQ4_NL"),
        GgufType("Q3_K", 11, "Q3_K", "Q5_0", "IQ4_NL"),
    )
}
NO_ZERO = ("Q5_1", "Q5_K", "Q4_1", "Q4_K", "IQ4_NL")  # blocks with an offset, or a table without 0: zeros become nonzero
UNQUANTIZED = "F32"  # the only format in which llama.cpp agrees with transformers in fp32
HALVES = ("F16", "BF16")  # not quantized, but llama.cpp's kernels round activations to them too
SUPER_BLOCK = 256  # values in a block of the formats ..._K
EMBEDDINGS = ("token_embd.weight", "output.weight")
VALUES = ("attn_v.weight", "v_proj.weight")  # in GGUF, and in transformers


def tensor_type(kind: GgufType, name: str, shape: tuple[int, ...]) -> str:
    """Return the format of a tensor by its name in GGUF or transformers; vectors stay F32, as llama.cpp requires."""
    if len(shape) < 2:
        return "F32"
    form = kind.embeddings if name in EMBEDDINGS else kind.matrices
    if kind.values and name.endswith(VALUES):
        form = kind.values
    if form.endswith("_K") and shape[-1] % SUPER_BLOCK:
        return kind.fallback
    if is_quantized(form) and shape[-1] % 32:
        return "F16"  # no quantized format supports such rows; only toy models have them
    return form


def is_quantized(name: str) -> bool:
    """Return True if the format rounds to a grid of few bits."""
    return name not in {UNQUANTIZED, *HALVES}


def keeps_zeros(name: str) -> bool:
    """Return True if zeros of a matrix stay zeros in a file of this format."""
    kind = GGUF_TYPES[name]
    return not {kind.matrices, kind.fallback} & set(NO_ZERO)


_ARCHITECTURES = ("llama", "mistral")  # transformers' model_type; both are llama.cpp's "llama"


def unfit(config: Mapping[str, Any] | Path) -> str | None:
    """Return the reason why a model (configuration, or directory with config.json) cannot be written as GGUF, or None."""
    values = json.loads((config / "config.json").read_text()) if isinstance(config, Path) else config
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = values.get("model_type")
    if kind not in _ARCHITECTURES:
        return f"models of type {kind!r} are not among {', '.join(_ARCHITECTURES)}"
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return f"its rotary embedding is scaled ({rope.get('rope_type', rope.get('type'))})"
    if values.get("sliding_window"):
        return f"its attention has a window ({values['sliding_window']})"
    if values.get("hidden_act", "silu") != "silu":
        return f"its activation is {values['hidden_act']}, not silu"
    if "quantization_config" in values:
        return "it is quantized already"
    return None

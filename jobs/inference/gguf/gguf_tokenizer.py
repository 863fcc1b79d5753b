"""A byte-level BPE tokenizer in GGUF's form: tokens, merges, llama.cpp's pre-tokenizer, special tokens, chat template."""

import json
from dataclasses import dataclass
from typing import Any

from ropewalk.cluster.errors import ConfigError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama_token_type
_LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_NO_MERGE = "[NONE] [NONE]"  # placeholder: the list must not be empty, and these are no tokens
# texts on which pre-tokenizers differ; llama.cpp must give the same ids for each
PROBES = (
    "Hello world, it's 2023 and we'VE paid 1,234.50 €!",
    "  two  spaces\n\n\nlines\r\n\ttabs \n x   ",
    "def f(x):\n    return x**2  # naïve",
    "Größe, 北京 是 中国的首都。 مرحبا дом 🙂🙂‍🔥",
    "1234567890 3.14159 0x1F 2nd",
    "I'll don't 'quoted' ''double'' \u00a0nbsp \u200b zero",
)


@dataclass(frozen=True, kw_only=True)
class GgufTokenizer:
    """The tokenizer fields of a GGUF file."""

    tokens: list[str]
    kinds: list[int]  # llama_token_type of each
    merges: list[str]
    pre: str  # llama.cpp's name of the pre-tokenizer
    bos: int | None
    eos: int | None
    pad: int | None
    unknown: int | None
    add_bos: bool
    chat_template: str | None


def gguf_tokenizer(tokenizer: Any, vocabulary: int) -> GgufTokenizer:
    """Convert a transformers tokenizer for a model with `vocabulary` rows. Raises ConfigError if llama.cpp cannot imitate it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal("it is written in Python, not by the tokenizers library")
    described = json.loads(backend.to_str())
    model = described["model"]
    pre = _pre_tokenizer(described)
    tokens = [f"[PAD{number}]" for number in range(vocabulary)]  # rows without a token, as in padded vocabularies
    kinds = [UNUSED] * vocabulary
    for text, number in model["vocab"].items():
        tokens[number], kinds[number] = text, NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    return GgufTokenizer(
        tokens=tokens,
        kinds=kinds,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]] or [_NO_MERGE],
        pre=pre,
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        unknown=tokenizer.unk_token_id,
        add_bos=_adds_bos(tokenizer),
        chat_template=_chat_template(tokenizer),
    )


def _pre_tokenizer(described: dict[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer, determined by its definition and not by the model's name."""
    model = described["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or model.get("dropout"):
        raise _refusal(f"its model is {model['type']}, not a byte-level BPE")
    if described["normalizer"] is not None:
        raise _refusal(f"it normalizes text ({described['normalizer'].get('type')}), which llama.cpp does not")
    steps = described["pre_tokenizer"] or {}
    chain = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in chain]
    if kinds[-1] != "ByteLevel" or chain[-1].get("add_prefix_space"):
        raise _refusal(f"its pre-tokenizer is {kinds}, not byte-level without a prefixed space")
    regex = chain[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and (regex or not model["merges"]) and not model.get("ignore_merges"):
        return "gpt-2"  # without merges the pre-tokenizer makes no difference
    if kinds == ["Digits", "ByteLevel"] and regex and chain[0].get("individual_digits") and not model.get("ignore_merges"):
        return "smollm"
    if (
        kinds == ["Split", "ByteLevel"]
        and not regex
        and model.get("ignore_merges")
        and chain[0]["pattern"].get("Regex") == _LLAMA_3
    ):
        return "llama-bpe"
    raise _refusal(f"its pre-tokenizer {json.dumps(steps)[:200]} is none of gpt-2, smollm, llama-bpe")


def _adds_bos(tokenizer: Any) -> bool:
    text = "a"
    plain, special = (tokenizer(text, add_special_tokens=flag)["input_ids"] for flag in (False, True))
    if special == plain:
        return False
    if special == [tokenizer.bos_token_id, *plain]:
        return True
    raise _refusal(f"it adds special tokens to a text ({special} for {plain}) other than a beginning of text")


def _chat_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or None


def _refusal(why: str) -> ConfigError:
    return ConfigError(
        f"model: its tokenizer cannot be written as GGUF: {why}; serve it with engine transformers or vllm, or train one with"
        " preprocess"
    )

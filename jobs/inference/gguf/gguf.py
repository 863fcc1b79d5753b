"""Write a model as GGUF, the format of llama.cpp, and verify in llama.cpp that it is the same model."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.gguf.ggml import Bytes, Float32s, quantize
from ropewalk.jobs.inference.gguf.gguf_place import gguf_place
from ropewalk.jobs.inference.gguf.gguf_tokenizer import PROBES, GgufTokenizer, gguf_tokenizer
from ropewalk.jobs.inference.gguf.gguf_types import GGUF_TYPES, UNQUANTIZED, GgufType, is_quantized, tensor_type, unfit
from ropewalk.jobs.inference.gguf.llama_cpp import LlamaCpp
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model

log = logging.getLogger(__name__)

TOLERANCE = 0.005  # of each log-probability in F32, in nats
ROUNDED_TOLERANCE = (
    0.05  # of their mean in F16 and BF16, whose kernels round activations too: as large as a model's weights let it
)
_VERIFIED_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Agreement of a file in llama.cpp with transformers about the next token, over the tokens of a few texts."""

    tokens: int
    max_log_prob_difference: float  # of the token that follows
    mean_log_prob_difference: float
    kl: float  # KL(transformers || llama.cpp), mean over tokens, in nats


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A file that was written and verified."""

    path: Path
    type: str
    bytes: int
    tensors: dict[str, int]  # number of tensors by format
    verified: Verified


def gguf_of(model: str | Path, type_name: str = UNQUANTIZED, root: Path | None = None) -> Path:
    """Return the GGUF file of a run's newest checkpoint or of a Hugging Face directory; it is written on first use.

    Raises ConfigError for a model that does not fit in GGUF, or a folder that cannot be written.
    """
    target = gguf_place(model, type_name, root)
    if not target.path.is_file():
        check_type(type_name)
        opened = open_model(str(target.model), root, device=torch.device("cpu"), step=target.step)
        write_gguf(opened, target.path, type_name)
    return target.path


def check_type(name: str) -> GgufType:
    """Return the format with this name. Raises ConfigError that lists the formats."""
    if name not in GGUF_TYPES:
        raise ConfigError(f"gguf: there is no type {name!r}; types: {', '.join(GGUF_TYPES)}")
    return GGUF_TYPES[name]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Results of calibration for each matrix, by the module's name in transformers."""

    importance: Mapping[str, Float32s] = field(
        default_factory=dict
    )  # mean square of each column's input, which weighs its rounding error
    encoded: Mapping[str, Bytes] = field(default_factory=dict)  # matrices quantized already, as in the file: [O, bytes per row]


def write_gguf(
    opened: OpenModel, target: Path, type_name: str, calibration: Calibration | None = None, *, name: str | None = None
) -> GgufFile:
    """Write the model in llama.cpp's tensors; a reader of `target` sees a complete, verified file or none.

    Raises ConfigError for a model or tokenizer that does not fit, if llama.cpp tokenizes differently, or if its log-probabilities
    differ from transformers: in F32 each by more than 0.005, in F16 and BF16 their mean by more than 0.05.
    """
    kind = check_type(type_name)
    if (why := unfit(opened.model.config.to_dict())) is not None:
        raise ConfigError(f"model: it cannot be written as GGUF: {why}; serve it with engine transformers or vllm")
    tokenizer = gguf_tokenizer(opened.tokenizer, opened.model.config.vocab_size)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        tensors = _write(opened, unfinished, kind, tokenizer, calibration or Calibration(), name or Path(opened.name).name)
    except PermissionError as error:
        raise ConfigError(f"{target}: cannot be written ({error}); copy the model to a directory of yours") from None
    try:
        verified = verify(unfinished, opened, type_name)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    written = GgufFile(path=target, type=type_name, bytes=target.stat().st_size, tensors=tensors, verified=verified)
    log.info("wrote %s: %s", target, json.dumps({**asdict(written), "path": target.name}))
    return written


def verify(path: Path, opened: OpenModel, type_name: str) -> Verified:
    """Compare the file, opened in llama.cpp, with the model.

    Raises ConfigError if tokens, or log-probabilities of an unquantized file, differ.
    """
    with LlamaCpp(path, exact=True) as engine:
        for text in PROBES:
            expected, actual = opened.tokenizer(text, add_special_tokens=False)["input_ids"], engine.tokenize(text)
            if expected != actual:
                raise ConfigError(
                    f"model: llama.cpp reads {text!r} as {actual}, the tokenizer as {expected}; it cannot be written as GGUF"
                )
        verified = _compare(engine, opened)
    off, limit = verified.mean_log_prob_difference, ROUNDED_TOLERANCE
    if type_name == UNQUANTIZED:
        off, limit = verified.max_log_prob_difference, TOLERANCE
    if not is_quantized(type_name) and not off <= limit:
        raise ConfigError(f"model: as {type_name}, llama.cpp's log-probabilities differ by {off:.4f}, more than {limit}")
    return verified


def _compare(engine: LlamaCpp, opened: OpenModel) -> Verified:
    differences, divergences = [], []
    for text in PROBES:
        ids = opened.tokenizer(text, add_special_tokens=False)["input_ids"][:_VERIFIED_TOKENS]
        theirs_TV = torch.from_numpy(engine.log_probabilities(ids)).double()
        with torch.no_grad():
            ours_TV = opened.model(input_ids=torch.tensor([ids], device=opened.device)).logits[0].double().cpu().log_softmax(-1)
        following_T1 = torch.tensor(ids[1:])[:, None]
        differences.append((ours_TV[:-1].gather(1, following_T1) - theirs_TV[:-1].gather(1, following_T1)).abs())
        divergences.append((ours_TV.exp() * (ours_TV - theirs_TV)).sum(-1))
    all_differences, all_divergences = torch.cat(differences), torch.cat(divergences)
    return Verified(
        tokens=len(all_divergences),
        max_log_prob_difference=float(all_differences.max()),
        mean_log_prob_difference=float(all_differences.mean()),
        kl=float(all_divergences.mean()),
    )


def _write(  # noqa: PLR0917 - the parts of a file
    opened: OpenModel,
    path: Path,
    kind: GgufType,
    tokenizer: GgufTokenizer,
    calibration: Calibration,
    name: str,
) -> dict[str, int]:
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map

    config = opened.model.config
    writer = GGUFWriter(path, "llama")
    _add_metadata(writer, config, kind, name)
    _add_tokenizer(writer, tokenizer)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    count: Counter[str] = Counter()
    for key, values in _tensors(opened.model):
        stem, _, ending = key.rpartition(".")
        target = names.get_name(stem)
        assert target is not None, f"{key}: a Llama has no such tensor"
        full = f"{target}.{ending}"
        form = tensor_type(kind, full, values.shape)
        count[form] += 1
        if ending == "weight" and stem in calibration.encoded:
            content = _reorder_rotary(config, key, calibration.encoded[stem])
        else:
            importance = calibration.importance.get("lm_head" if stem == "model.embed_tokens" else stem)
            content = _encode(values, form, importance)
        writer.add_tensor(full, content, raw_dtype=GGMLQuantizationType[form])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dict(count)


def _tensors(model: Any) -> Iterator[tuple[str, Float32s]]:
    """Yield every tensor once, in fp32, rows of queries and keys in llama.cpp's order: rotated pairs are adjacent."""
    config = model.config
    tied = bool(config.tie_word_embeddings)
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and tied:
            continue
        yield key, _reorder_rotary(config, key, tensor.detach().float().cpu().numpy())


def _reorder_rotary(config: Any, key: str, rows: Any) -> Any:
    """Return the rows of a matrix in llama.cpp's order."""
    if ".q_proj." in key:
        return _permute_heads(rows, config.num_attention_heads)
    return _permute_heads(rows, config.num_key_value_heads) if ".k_proj." in key else rows


def _permute_heads(values: Any, num_heads: int) -> Any:
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _encode(values: Float32s, form: str, importance: Float32s | None) -> Any:
    from gguf import GGMLQuantizationType, quants

    number = GGMLQuantizationType[form]
    if form == UNQUANTIZED:
        return values
    if not is_quantized(form) or form == "Q8_0":  # implemented in Python by gguf
        return quants.quantize(values, number)
    return quantize(values, int(number), importance)


def _add_metadata(writer: Any, config: Any, kind: GgufType, name: str) -> None:
    from gguf import GGML_QUANT_VERSION

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(kind.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.kinds)
    writer.add_token_merges(tokenizer.merges)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(False)
    for number, add in (
        (tokenizer.bos, writer.add_bos_token_id),
        (tokenizer.eos, writer.add_eos_token_id),
        (tokenizer.pad, writer.add_pad_token_id),
        (tokenizer.unknown, writer.add_unk_token_id),
    ):
        if number is not None:
            add(number)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)

"""Architectures of transformers that the tests train, with the keys of a small model of each. The documents list them."""

from typing import Any

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
OLDER: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "pad_token_id": None}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
HEADS = {**SIZES, "head_dim": 8}
ZOO: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": SIZES,
    "qwen2": SIZES,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": {**HEADS, "sliding_window": 16},
    "gemma3_text": {**HEADS, "sliding_window": 16},
    "phi": {**SIZES, "num_key_value_heads": 2},
    "phi3": {**SIZES, "num_key_value_heads": 2, "sliding_window": 16},
    "gpt2": {**OLDER, **NO_DROPOUT},
    "gpt_neox": {**SIZES, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "opt": {**SIZES, "word_embed_proj_dim": 16, "ffn_dim": 32, "dropout": 0.0},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "pad_token_id": None},
    "falcon": {**SIZES, "alibi": False},
    "mixtral": {**SIZES, "num_local_experts": 4},
    "olmo": SIZES,
    "olmo2": SIZES,
    "stablelm": {**SIZES, "num_key_value_heads": 2},
    "starcoder2": {**SIZES, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    "mamba2": {"hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1},
}

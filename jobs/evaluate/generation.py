"""Samples of a model's own text."""

from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cluster.storage import StoragePath
from datapipe.loader.loader import TokenLoader
from jobs.evaluate.config import EvaluateConfig


def samples_of(model: Any, config: EvaluateConfig, loader: TokenLoader) -> list[dict[str, str]]:
    """What the model writes after each prompt; drawn from the seed."""
    wanted = config.generate
    if not wanted.prompts:
        return []
    tokenizer = _tokenizer(loader)
    end = loader.manifests[0].tokenizer.end_of_document
    torch.manual_seed(config.seed)
    samples = []
    for prompt in wanted.prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids if prompt else torch.tensor([[end]])
        written = model.generate(
            ids.long(),
            attention_mask=torch.ones_like(ids),
            max_new_tokens=wanted.max_new_tokens,
            do_sample=wanted.temperature > 0,
            temperature=wanted.temperature or None,
            top_p=None,
            top_k=None,
            eos_token_id=end,
            pad_token_id=end,
        )
        text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        samples.append({"prompt": prompt, "text": text})
    return samples


def _tokenizer(loader: TokenLoader) -> PreTrainedTokenizerFast:
    """The tokenizer in the first data set; fetched first where that is not on this machine."""
    dataset = loader.datasets[0]
    place: StoragePath = dataset.place.child(dataset.manifest.tokenizer.path)
    if place.local is None:
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(place.read("tokenizer.json").decode()))
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(place.local)
    return tokenizer

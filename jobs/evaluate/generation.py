"""Sample generations of a model."""

from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jobs.evaluate.config import EvaluateConfig
from jobs.training.model_record import TokenizerPlan


def generate(model: Any, config: EvaluateConfig, tokenizer: PreTrainedTokenizerFast, end: int) -> list[dict[str, str]]:
    """What the model writes after each prompt, drawn from the seed; nothing on a rank that has no full model."""
    wanted = config.generate
    if model is None:
        return []
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


def tokenizer_for(plan: TokenizerPlan) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it; its files are fetched first where they are not on this machine."""
    if plan.place.local is None:
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(plan.place.read("tokenizer.json").decode()))
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(plan.place.local)
    return tokenizer

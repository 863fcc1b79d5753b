"""Sample generations of a model."""

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jobs.evaluate.config import EvaluateConfig
from jobs.inference.encode import encode
from jobs.inference.generate import Sampling, generate
from jobs.inference.open_model import OpenModel
from jobs.training.model_record import TokenizerPlan


def samples(opened: OpenModel, config: EvaluateConfig) -> list[dict[str, str]]:
    """What the model writes after each prompt, drawn from the seed."""
    wanted = config.generate
    sampling = Sampling(max_new_tokens=wanted.max_new_tokens, temperature=wanted.temperature)
    prompts = [encode(opened, prompt) or [opened.end] for prompt in wanted.prompts]
    written = generate(opened, prompts, sampling, seed=config.seed)
    return [{"prompt": prompt, "text": found.text} for prompt, found in zip(wanted.prompts, written, strict=True)]


def tokenizer_for(plan: TokenizerPlan) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers has it; its files are fetched first where they are not on this machine."""
    tokenizer: PreTrainedTokenizerFast
    if plan.place.local is None:
        read = plan.place.read("tokenizer.json").decode()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(read))
    else:
        tokenizer = AutoTokenizer.from_pretrained(plan.place.local)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(plan.record.end_of_document)
    return tokenizer

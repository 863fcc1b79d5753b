"""Sample generations of a model."""

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.inference.scoring.encode import encode
from ropewalk.jobs.inference.scoring.generate import Sampling, generate
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.training.loop.model_record import TokenizerPlan


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

"""Texts that a model in training writes after fixed prompts: greedy, so that validations differ by the model alone."""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.conversation import BadConversationError
from ropewalk.datapipe.chat.template import ChatTokenizer
from ropewalk.jobs.training.loop.config import SamplesConfig
from ropewalk.jobs.training.loop.tail import Tail, run_tail
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group

# B prompts of a rank, T tokens, D hidden size

TABLE, COLUMNS = "samples", ("step", "prompt", "text")
Row = tuple[int, str, str]


class PromptSamples:
    """Continuations of the prompts of a job file. All ranks call each method together; rank 0 alone needs the run's tokenizer.

    The ranks share the prompts and compute equally many tokens, since the collectives of a sharded model must match. No random
    number is drawn, so that training is not affected.
    """

    def __init__(self, config: SamplesConfig, run: RunDir, group: Group, *, chat: bool, max_length: int) -> None:
        """Encode the prompts; with `chat` they are first messages of conversations. Raises ConfigError for an unusable prompt."""
        self._config, self._group = config, group
        self._tokenizer: Any = None
        prompts: list[list[int]] = []
        refused = ""
        if group.is_main:
            self._tokenizer = AutoTokenizer.from_pretrained(run.tokenizer, trust_remote_code=False)
            try:
                ids = [self._ids(run, prompt, chat=chat) for prompt in config.prompts]
                prompts = [_shorten(prompt_ids, config.max_new_tokens, max_length) for prompt_ids in ids]
            except ConfigError as error:
                refused = str(error)
        self._prompts, refused = group.broadcast_object((prompts, refused))
        if refused:  # raised on every rank, so that none waits for the others
            raise ConfigError(refused)

    def rows(self, model: nn.Module, step: int) -> list[Row]:
        """Return (step, prompt, text) of each prompt on rank 0, nothing on the others."""
        share = range(self._group.data_rank, len(self._prompts), self._group.data_size)
        written = self._continue(model, [self._prompts[number] for number in share])
        gathered = self._group.gather_object(dict(zip(share, written, strict=True)), dict[int, list[int]])
        if not self._group.is_main:
            return []
        by_prompt = {number: ids for texts in gathered for number, ids in texts.items()}
        ends = self._ends(model)
        return [(step, prompt, self._text(by_prompt[number], ends)) for number, prompt in enumerate(self._config.prompts)]

    @torch.no_grad()
    def _continue(self, model: nn.Module, prompts: list[list[int]]) -> list[list[int]]:
        """Generate greedily after each prompt in one batch, with shorter texts padded on the right.

        Each token is computed from all before it, without a cache, since caches differ from model to model.
        """
        texts = [list(prompt) for prompt in prompts] or [[0]]  # a rank without a prompt joins the collectives
        was_training = model.training
        model.eval()
        for _ in range(self._config.max_new_tokens):
            longest = max(map(len, texts))
            ids_BT = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=self._group.device)
            last_B = torch.tensor([len(text) - 1 for text in texts], device=self._group.device)
            likeliest_B = run_tail(model, {"input_ids": ids_BT}, partial(_likeliest, last_B))
            for text, token in zip(texts, likeliest_B.tolist(), strict=True):
                text.append(token)
        reshard_all(model)
        model.train(was_training)
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=False)]

    def _ids(self, run: RunDir, prompt: str, *, chat: bool) -> list[int]:
        if not chat:
            ids = self._tokenizer(prompt).input_ids or [self._tokenizer.eos_token_id]
            if ids == [None]:
                raise ConfigError(
                    "samples.prompts: an empty prompt needs an end-of-text token to start from, which this tokenizer lacks"
                )
            return list(ids)
        asking = ChatTokenizer(run.tokenizer, None if self._tokenizer.chat_template else TEMPLATES["plain"])
        try:
            return asking.prompt_ids([{"role": "user", "content": prompt}])
        except BadConversationError as error:
            raise ConfigError(f"samples.prompts: the chat template refuses {prompt!r}: {error.detail}") from None

    def _ends(self, model: nn.Module) -> set[int]:
        configured = getattr(model.config, "eos_token_id", None)
        ends = {self._tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
        return {int(token) for token in ends if token is not None}

    def _text(self, ids: list[int], ends: set[int]) -> str:
        text_ids = next((ids[:position] for position, token in enumerate(ids) if token in ends), ids)
        return str(self._tokenizer.decode(text_ids, skip_special_tokens=True))


def _likeliest(last_B: torch.Tensor, hidden_BTD: torch.Tensor, tail: Tail) -> torch.Tensor:
    return tail(hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]).argmax(-1)


def _shorten(ids: list[int], new_tokens: int, max_length: int) -> list[int]:
    """Return the end of a prompt that leaves room for the new tokens. Raises ConfigError if there is none."""
    if new_tokens >= max_length:
        raise ConfigError(
            f"samples.max_new_tokens: {new_tokens} leave no room for a prompt: the context has {max_length} tokens; lower it"
        )
    return ids[new_tokens - max_length :]

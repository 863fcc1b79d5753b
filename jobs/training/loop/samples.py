"""What a model in training writes after fixed prompts: greedy, so that two validations differ by the model alone."""

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
from ropewalk.jobs.training.loop.objective import logits_of
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group

# B prompts of a rank, T tokens, V vocabulary

TABLE, COLUMNS = "samples", ("step", "prompt", "text")
Row = tuple[int, str, str]


class PromptSamples:
    """Continues the prompts of a job file. All ranks call each method together; rank 0 alone needs the run's tokenizer.

    The ranks share the prompts, and compute equally many tokens, since the collectives of a sharded model must match. Nothing is
    drawn: training goes on as if nobody had asked.
    """

    def __init__(self, config: SamplesConfig, run: RunDir, group: Group, *, chat: bool, max_length: int) -> None:
        """`chat`: a prompt is the first message of a conversation. Raises ConfigError where a prompt cannot be asked."""
        self._config, self._group = config, group
        self._tokenizer: Any = None
        asked: list[list[int]] = []
        refused = ""
        if group.is_main:
            self._tokenizer = AutoTokenizer.from_pretrained(run.tokenizer)
            try:
                ids = [self._ids(run, prompt, chat=chat) for prompt in config.prompts]
                asked = [_fitting(one, config.max_new_tokens, max_length) for one in ids]
            except ConfigError as error:
                refused = str(error)
        self._prompts, refused = group.broadcast_object((asked, refused))
        if refused:  # on every rank, so that none waits for the others
            raise ConfigError(refused)

    def rows(self, model: nn.Module, step: int) -> list[Row]:
        """(step, prompt, text) of each prompt, on rank 0; nothing on the others."""
        share = range(self._group.data_rank, len(self._prompts), self._group.data_size)
        written = self._continue(model, [self._prompts[number] for number in share])
        gathered = self._group.all_gather_object(dict(zip(share, written, strict=True)))
        if not self._group.is_main:
            return []
        by_prompt = {number: ids for one in gathered for number, ids in one.items()}
        ends = self._ends(model)
        return [(step, prompt, self._text(by_prompt[number], ends)) for number, prompt in enumerate(self._config.prompts)]

    @torch.no_grad()
    def _continue(self, model: nn.Module, prompts: list[list[int]]) -> list[list[int]]:
        """The likeliest tokens after each prompt, side by side: the shorter ones are padded on the right, which none looks at.

        Each token is computed from all before it: caches differ from model to model.
        """
        texts = [list(prompt) for prompt in prompts] or [[0]]  # a rank without a prompt joins the collectives
        was_training = model.training
        model.eval()
        for _ in range(self._config.max_new_tokens):
            longest = max(map(len, texts))
            ids_BT = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=self._group.device)
            last_B = torch.tensor([len(text) - 1 for text in texts], device=self._group.device)
            logits_BTV = logits_of(model, {"input_ids": ids_BT})
            likeliest_B = logits_BTV[torch.arange(len(texts), device=last_B.device), last_B].argmax(-1)
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
                    "samples.prompts: an empty prompt begins with the end-of-text token, which this tokenizer lacks"
                )
            return list(ids)
        asking = ChatTokenizer(run.tokenizer, None if self._tokenizer.chat_template else TEMPLATES["plain"])
        try:
            return asking.prompt_ids([{"role": "user", "content": prompt}])
        except BadConversationError as error:
            raise ConfigError(f"samples.prompts: the chat template refuses {prompt!r}: {error.detail}") from None

    def _ends(self, model: nn.Module) -> set[int]:
        told = getattr(model.config, "eos_token_id", None)
        found = {self._tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])}
        return {int(token) for token in found if token is not None}

    def _text(self, ids: list[int], ends: set[int]) -> str:
        kept = next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)
        return str(self._tokenizer.decode(kept, skip_special_tokens=True))


def _fitting(ids: list[int], new_tokens: int, max_length: int) -> list[int]:
    """The end of a prompt that leaves room for what follows it. Raises ConfigError."""
    if new_tokens >= max_length:
        raise ConfigError(
            f"samples.max_new_tokens: {new_tokens} leave no room for a prompt: the model sees {max_length} tokens; ask for fewer"
        )
    return ids[new_tokens - max_length :]

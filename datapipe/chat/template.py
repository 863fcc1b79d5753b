"""Conversations as token ids, each with whether it is learnt: the assistant's words and the end of its turns, nothing else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from ropewalk.cluster.errors import ConfigError
from ropewalk.datapipe.chat.conversation import BadConversationError, Conversation, Message

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Encoded:
    """The tokens of a conversation, and whether each of them is learnt."""

    ids: NDArray[np.int64]
    learnt: NDArray[np.bool_]
    num_bytes: int = 0  # UTF-8 bytes of the text
    num_learnt_bytes: int = 0  # of those that the learnt tokens stand for, special tokens apart


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template: what `apply_chat_template` gives, with a mask that can be trusted."""

    def __init__(self, directory: Path, template: str | None = None) -> None:
        """Open the tokenizer of a directory; `template` replaces its own. Raises ConfigError where it has none."""
        found = open_tokenizer(directory)
        chosen = template or found.chat_template
        if isinstance(chosen, dict):
            chosen = chosen.get("default")
        if not chosen:
            raise ConfigError(
                f"{directory}: its tokenizer has no chat template; set chat.template to a file, or to chatml or plain"
            )
        self.template: str = chosen
        self.eos_token: str | None = found.eos_token
        self.eos_id: int | None = found.eos_token_id
        self._words = dict(found.special_tokens_map)
        self._tokenizer = Tokenizer.from_str(found.backend_tokenizer.to_str())
        self._tokenizer.post_processor = None  # the template writes special tokens, and offsets must not be trimmed
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._marked = bool(_GENERATION.search(chosen))

    def render(self, messages: Sequence[Message], tools: Any = None, *, prompt: bool = False) -> str:
        """The text of a conversation; with `prompt`, up to where the assistant begins to answer. Raises BadConversationError."""
        return self._render(messages, tools, prompt=prompt)[0]

    def prompt_ids(self, messages: Sequence[Message], tools: Any = None) -> list[int]:
        """The tokens that the assistant is asked with."""
        return list(self._tokenizer.encode(self.render(messages, tools, prompt=True), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def encode(self, conversation: Conversation) -> Encoded:
        """The tokens of a conversation. Raises BadConversationError where the template fails, or nothing would be learnt."""
        text, spans = self._spans(conversation)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        learnt = np.zeros(len(encoding.ids), np.bool_)
        # a token that straddles the border counts, as in transformers: it has the answer's first letters
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        num_learnt_bytes = 0
        for start, end in spans:
            inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
            kept = inside if self._marked else self._to_end_of_turn(inside, encoding.ids, offsets, text)
            learnt[kept] = True
            num_learnt_bytes += self._num_bytes(kept, encoding.ids, offsets, text)
        if not learnt.any():
            raise BadConversationError("empty_mask", "no token of the assistant is left; look at the template")
        return Encoded(np.array(encoding.ids, np.int64), learnt, len(text.encode()), num_learnt_bytes)

    def _num_bytes(self, kept: NDArray[np.int64], ids: Sequence[int], offsets: NDArray[np.int64], text: str) -> int:
        """The bytes of text that neighbouring tokens stand for: what a special token is written with is none."""
        if not len(kept):
            return 0
        special = sum(len(text[slice(*offsets[index])].encode()) for index in kept.tolist() if ids[index] in self._special)
        return len(text[offsets[kept[0], 0] : offsets[kept[-1], 1]].encode()) - special

    def _to_end_of_turn(
        self, inside: NDArray[np.int64], ids: Sequence[int], offsets: NDArray[np.int64], text: str
    ) -> NDArray[np.int64]:
        """Leave out the white space that a template writes behind the special token that ends a turn."""
        special = [place for place, index in enumerate(inside.tolist()) if ids[index] in self._special]
        if special and not text[offsets[inside[special[-1]], 1] : offsets[inside[-1], 1]].strip():
            return inside[: special[-1] + 1]
        return inside

    def _spans(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """The text, and from which letter to which the assistant's turns reach in it."""
        messages, tools, first = conversation.messages, conversation.tools, conversation.learn_from
        text, marked = self._render(messages, tools)
        if self._marked:
            asked = first < len(messages) and messages[first]["role"] == "assistant"
            begin = len(self._prefix(text, messages[:first], tools, prompt=asked)) if first else 0
            return text, [(start, end) for start, end in marked if start >= begin]
        spans = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant" and number >= first:
                begin = len(self._prefix(text, messages[:number], tools, prompt=True))
                spans.append((begin, len(self._prefix(text, messages[: number + 1], tools, prompt=False))))
        return text, spans

    def _prefix(self, text: str, messages: Sequence[Message], tools: Any, *, prompt: bool) -> str:
        """The text of the first messages, which must be how the whole text begins."""
        found = self.render(messages, tools, prompt=prompt)
        if not text.startswith(found):
            raise BadConversationError(
                "template_not_prefix",
                f"the first {len(messages)} messages are written otherwise when more follow; mark what is learnt by"
                " {% generation %}",
            )
        return found

    def _render(self, messages: Sequence[Message], tools: Any, *, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, indices = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=self._marked,
                add_generation_prompt=prompt,
                **self._words,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:  # whatever a template does
            raise BadConversationError("template_failed", str(error)[:300]) from None
        return texts[0], [(int(start), int(end)) for start, end in indices[0]] if indices else []


def open_tokenizer(directory: Path) -> Any:
    """The tokenizer of a directory, as transformers has it. Raises ConfigError where it cannot be opened, or has no fast form."""
    try:
        if (directory / "tokenizer_config.json").is_file():
            found = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        else:
            found = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers and transformers each have their own
        raise ConfigError(f"{directory}: its tokenizer cannot be opened: {str(error).splitlines()[0][:300]}") from None
    if not getattr(found, "is_fast", False):
        raise ConfigError(f"{directory}: its tokenizer has no fast form (tokenizer.json); choose a model that has one")
    return found

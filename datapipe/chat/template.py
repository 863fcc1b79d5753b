"""Encode conversations as token ids with a mask: only the assistant's text and the ends of its turns are trained on."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from ropewalk.cluster.errors import ConfigError
from ropewalk.datapipe.chat.conversation import BadConversationError, Conversation, Message

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
BREAK = "\ufdd0\ufdd1"  # noncharacters; written into special tokens that occur in contents, and removed while encoding


@dataclass(frozen=True)
class Encoded:
    """Tokens of a conversation, and the mask of tokens to train on (`learnt`)."""

    ids: NDArray[np.int64]
    learnt: NDArray[np.bool_]
    num_bytes: int = 0  # UTF-8 bytes of the text
    num_learnt_bytes: int = 0  # text bytes of the learnt tokens, without special tokens


class ChatTokenizer:
    """A Hugging Face tokenizer with its chat template: like `apply_chat_template`, with a reliable loss mask.

    Special tokens written in contents are encoded as ordinary text: only the template begins and ends turns.
    """

    def __init__(self, directory: Path, template: str | None = None) -> None:
        """Open the tokenizer of a directory; `template` replaces its own. Raises ConfigError if there is no template."""
        tokenizer = open_tokenizer(directory)
        chosen = template or tokenizer.chat_template
        if isinstance(chosen, dict):
            chosen = chosen.get("default")
        if not chosen:
            raise ConfigError(
                f"{directory}: the tokenizer has no chat template; set chat.template to a file, or to chatml or plain"
            )
        self.template: str = chosen
        self.eos_token: str | None = tokenizer.eos_token
        self.eos_id: int | None = tokenizer.eos_token_id
        self._special_names = dict(tokenizer.special_tokens_map)
        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.post_processor = None  # the template writes special tokens, and offsets must not be trimmed
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        specials = {number: token for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._special = set(specials)
        spellings = sorted((re.escape(token.content) for token in specials.values() if token.content), key=len, reverse=True)
        self._spelt = re.compile("|".join(spellings) or r"(?!)")
        self._marked = bool(_GENERATION.search(chosen))

    def render(self, messages: Sequence[Message], tools: Any = None, *, prompt: bool = False) -> str:
        """Render a conversation for `ids`; with `prompt`, add the start of the assistant's answer.

        Special tokens written in contents are broken up by BREAK. Raises BadConversationError.
        """
        return self._render(messages, tools, prompt=prompt)[0]

    def prompt_ids(self, messages: Sequence[Message], tools: Any = None) -> list[int]:
        """Return the tokens of the prompt for the assistant's next answer. Raises BadConversationError."""
        return self.ids(self.render(messages, tools, prompt=True))

    def ids(self, text: str) -> list[int]:
        """Return the tokens of rendered text. Raises BadConversationError if a content cannot be encoded as ordinary text."""
        if BREAK in text:
            return list(self._encode(text).ids)
        # without offsets: less than half the time, and threads are not held up while millions of them are freed
        return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _encode(self, text: str) -> Encoding:
        if BREAK not in text:
            return self._tokenizer.encode(text, add_special_tokens=False)
        encoding = self._breaking.encode(text, add_special_tokens=False)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._special and BREAK in text[start:end]:  # the vocabulary of a unigram model has them as words
                spelling = text[start:end].replace(BREAK, "")
                raise BadConversationError("special_token", f"{spelling!r} in a message cannot be encoded as ordinary text")
        return encoding

    @cached_property
    def _breaking(self) -> Tokenizer:
        """Tokenizer that removes BREAK after it has looked for special tokens."""
        tokenizer = json.loads(self._tokenizer.to_str())
        for token in tokenizer["added_tokens"]:
            if token["special"]:
                token["normalized"] = False  # searched before the normalizer runs
        remove = {"type": "Replace", "pattern": {"String": BREAK}, "content": ""}
        following = [tokenizer["normalizer"]] if tokenizer["normalizer"] else []
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [remove, *following]}
        return Tokenizer.from_str(json.dumps(tokenizer))

    def _break_special_tokens(self, value: Any) -> Any:
        """Return messages or tools with BREAK after each character of a special token."""
        if isinstance(value, str):
            return self._spelt.sub(lambda match: "".join(character + BREAK for character in match[0]), value)
        if isinstance(value, dict):
            return {self._break_special_tokens(key): self._break_special_tokens(each) for key, each in value.items()}
        return [self._break_special_tokens(each) for each in value] if isinstance(value, list | tuple) else value

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def encode(self, conversation: Conversation) -> Encoded:
        """Encode a conversation. Raises BadConversationError if the template fails or the mask is empty."""
        text, spans = self._spans(conversation)
        encoding = self._encode(text)
        learnt = np.zeros(len(encoding.ids), np.bool_)
        # a token across the border counts, as in transformers: it contains the first letters of the answer
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        num_learnt_bytes = 0
        for start, end in spans:
            inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
            indices = inside if self._marked else self._to_end_of_turn(inside, encoding.ids, offsets, text)
            learnt[indices] = True
            num_learnt_bytes += self._num_bytes(indices, encoding.ids, offsets, text)
        if not learnt.any():
            raise BadConversationError("empty_mask", "no token of the assistant is left; check the template")
        return Encoded(np.array(encoding.ids, np.int64), learnt, _num_bytes(text), num_learnt_bytes)

    def _num_bytes(self, indices: NDArray[np.int64], ids: Sequence[int], offsets: NDArray[np.int64], text: str) -> int:
        """Return the bytes of text of consecutive tokens, without those of special tokens."""
        if not len(indices):
            return 0
        special = sum(_num_bytes(text[slice(*offsets[index])]) for index in indices.tolist() if ids[index] in self._special)
        return _num_bytes(text[offsets[indices[0], 0] : offsets[indices[-1], 1]]) - special

    def _to_end_of_turn(
        self, inside: NDArray[np.int64], ids: Sequence[int], offsets: NDArray[np.int64], text: str
    ) -> NDArray[np.int64]:
        """Remove the white space that a template writes after the special token that ends a turn."""
        special = [position for position, index in enumerate(inside.tolist()) if ids[index] in self._special]
        if special and not text[offsets[inside[special[-1]], 1] : offsets[inside[-1], 1]].strip():
            return inside[: special[-1] + 1]
        return inside

    def _spans(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and the ranges of characters of the assistant's turns."""
        messages, tools, first = conversation.messages, conversation.tools, conversation.learn_from
        text, marked = self._render(messages, tools)
        if self._marked:
            before_answer = first < len(messages) and messages[first]["role"] == "assistant"
            begin = len(self._prefix(text, messages[:first], tools, prompt=before_answer)) if first else 0
            return text, [(start, end) for start, end in marked if start >= begin]
        spans = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant" and number >= first:
                begin = len(self._prefix(text, messages[:number], tools, prompt=True))
                spans.append((begin, len(self._prefix(text, messages[: number + 1], tools, prompt=False))))
        return text, spans

    def _prefix(self, text: str, messages: Sequence[Message], tools: Any, *, prompt: bool) -> str:
        """Return the text of the first messages, which must be a prefix of the whole text."""
        prefix = self.render(messages, tools, prompt=prompt)
        if not text.startswith(prefix):
            raise BadConversationError(
                "template_not_prefix",
                f"the first {len(messages)} messages are rendered differently when more follow; mark the text to train on by"
                " {% generation %}",
            )
        return prefix

    def _render(self, messages: Sequence[Message], tools: Any, *, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        try:
            texts, indices = render_jinja_template(
                conversations=[self._break_special_tokens(list(messages))],
                tools=self._break_special_tokens(tools),
                chat_template=self.template,
                return_assistant_tokens_mask=self._marked,
                add_generation_prompt=prompt,
                **self._special_names,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:  # a template may raise any of these
            raise BadConversationError("template_failed", str(error)[:300]) from None
        return texts[0], [(int(start), int(end)) for start, end in indices[0]] if indices else []


def _num_bytes(text: str) -> int:
    return len(text.replace(BREAK, "").encode())


def open_tokenizer(directory: Path) -> Any:
    """Open the tokenizer of a directory with transformers. Raises ConfigError if this fails or it has no fast version."""
    try:
        if (directory / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers and transformers raise various types
        raise ConfigError(f"{directory}: the tokenizer cannot be opened: {str(error).splitlines()[0][:300]}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"{directory}: the tokenizer has no fast version (tokenizer.json); choose a model that has one")
    return tokenizer

"""Prompts as token ids: texts, conversations rendered by the chat template, and the check against the context."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.conversation import BadConversationError
from ropewalk.datapipe.chat.template import BREAK, ChatTokenizer, open_tokenizer
from ropewalk.jobs.inference.engines.api.bodies import ChatRequest, CompletionRequest, Message, TokenizeRequest, plain
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.text import Vocabulary


class Prompts:
    """The tokenizer of a model and its chat template."""

    def __init__(self, files: Path, vocabulary: int) -> None:
        """Open the tokenizer in the folder `files`; without a chat template the built-in `plain` is used. Raises ConfigError."""
        self._tokenizer = open_tokenizer(files)
        self.vocabulary, self.text = vocabulary, Vocabulary(self._tokenizer)
        template = getattr(self._tokenizer, "chat_template", None)
        self._chat = ChatTokenizer(files, None if template else TEMPLATES["plain"])
        self._most_token_bytes = most_token_bytes(self._tokenizer.backend_tokenizer)
        self._prefix = next(
            (token for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id) if token is not None), None
        )

    def of_completion(self, request: CompletionRequest, context: int) -> list[list[int]]:
        """Return the prompts of a request. Raises ApiError for an invalid one."""
        prompt: Any = request.prompt
        if isinstance(prompt, str):
            return [self._fitting(prompt, context)]
        if prompt and isinstance(prompt[0], int):
            return [self._check_tokens(prompt)]
        if not prompt:
            raise ApiError("'prompt' is an empty list; give a text, token ids, or several of them", param="prompt")
        return [self._fitting(text, context) if isinstance(text, str) else self._check_tokens(text) for text in prompt]

    def of_chat(self, request: ChatRequest, context: int) -> list[int]:
        """Return the tokens of a conversation. Raises ApiError if the template refuses it."""
        tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []] or None
        return self._of_messages(request.messages, None if request.tool_choice == "none" else tools, context)

    def template(self, messages: Sequence[Message], tools: Any = None) -> str:
        """Render the prompt of a conversation. Raises ApiError."""
        return self._rendered(messages, tools).replace(BREAK, "")

    def of_tokenize(self, request: TokenizeRequest) -> list[int]:
        """Return the tokens of a text or a conversation."""
        if request.messages:
            return self._of_messages(request.messages)
        text = request.content if request.content is not None else request.prompt
        if text is None:
            raise ApiError("you must provide one of 'content', 'prompt' and 'messages'", param="content")
        special = request.add_special if request.add_special is not None else request.add_special_tokens
        return self.encode(text, special=bool(special))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, including special ones. Raises ApiError."""
        return str(
            self._tokenizer.backend_tokenizer.decode(self._check_tokens(tokens) if tokens else [], skip_special_tokens=False)
        )

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text; of an empty one the model's prefix token, if special tokens are added."""
        begins = bool(self._tokenizer.bos_token) and text.startswith(str(self._tokenizer.bos_token))
        encoded = self._tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=special and not begins)
        return list(encoded[0].ids) or ([self._prefix] if special and self._prefix is not None else [])

    def _of_messages(self, messages: Sequence[Message], tools: Any = None, context: int | None = None) -> list[int]:
        text = self._rendered(messages, tools)
        if context is not None:
            self._check_bytes(text, context, "messages")
        with _refusing():
            return self._chat.ids(text)

    def _rendered(self, messages: Sequence[Message], tools: Any) -> str:
        with _refusing():
            return self._chat.render(_texts(messages), tools, prompt=True)

    def _fitting(self, text: str, context: int) -> list[int]:
        self._check_bytes(text, context, "prompt")
        return self.encode(text)

    def _check_bytes(self, text: str, context: int, param: str) -> None:
        """Raise ApiError for a text that cannot fit into the context, without encoding it: 8 MiB take many seconds."""
        num_bytes = len(text.encode())
        if self._most_token_bytes is not None and num_bytes > context * self._most_token_bytes:
            raise ApiError(
                f"the prompt has {num_bytes} bytes; the context of the model has {context} tokens of at most"
                f" {self._most_token_bytes} bytes; shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )

    def _check_tokens(self, tokens: Sequence[int]) -> list[int]:
        if not tokens:
            raise ApiError("a prompt of token ids is empty; put the model's first token there", param="prompt")
        if (worst := max(tokens)) >= self.vocabulary:
            raise ApiError(f"token id {worst} is not below {self.vocabulary}, the size of the model's vocabulary", param="prompt")
        return list(tokens)


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise ApiError for a conversation that cannot be rendered or encoded."""
    try:
        yield
    except BadConversationError as error:
        raise ApiError(f"the chat template of the model refuses this conversation: {error.detail}", param="messages") from None


def most_token_bytes(tokenizer: Tokenizer) -> int | None:
    """Return the largest number of bytes of a text that one token can stand for, or None if there is no such limit."""
    settings, vocabulary = json.loads(tokenizer.to_str()), tokenizer.get_vocab(with_added_tokens=True)
    complete = {f"<0x{byte:02X}>" for byte in range(256)} if settings["model"].get("byte_fallback") else set(ByteLevel.alphabet())
    factor = _shrinks_by(settings["normalizer"]) * _shrinks_by(settings["pre_tokenizer"])
    swallows_space = any(token["lstrip"] or token["rstrip"] for token in settings["added_tokens"])
    if settings["model"]["type"] != "BPE" or not complete <= vocabulary.keys() or swallows_space or factor == math.inf:
        return None
    return int(factor) * max(len(word.encode()) for word in vocabulary)


def _shrinks_by(step: Mapping[str, Any] | None) -> float:
    """Return the largest factor by which a step before the model can shorten a text."""
    kind = step["type"] if step else None
    if step is None or kind in {"ByteLevel", "Digits", "Metaspace", "Prepend"}:
        return 1
    if kind == "Sequence":
        return math.prod(map(_shrinks_by, step.get("normalizers") or step.get("pretokenizers") or ()))
    if kind == "NFC":
        return 3  # the most that a canonical decomposition adds to UTF-8: U+0390 has two bytes, decomposed six
    if kind == "Split" and step["behavior"] != "Removed":
        return 1
    pattern = step.get("pattern", {}).get("String") if kind == "Replace" else None
    return 1 if pattern and len(step["content"].encode()) >= len(pattern.encode()) else math.inf


def check_fits(prompt: Sequence[int], max_tokens: int | None, context: int, default: int | None, param: str) -> int:
    """Return the maximum number of answer tokens. Raises ApiError with the length of the prompt and the limit.

    `default` applies if the request has no `max_tokens`; None: the rest of the context.
    """
    room = context - len(prompt)
    if room < 1:
        raise ApiError(
            f"the prompt has {len(prompt)} tokens and the context of the model {context}, with at least 1 for the answer; shorten"
            " the prompt",
            param=param,
            code="context_length_exceeded",
        )
    if max_tokens is not None and max_tokens > room:
        raise ApiError(
            f"the prompt has {len(prompt)} tokens and max_tokens is {max_tokens}, together {len(prompt) + max_tokens}; the"
            f" context of the model has {context}; shorten the prompt, or set max_tokens to at most {room}",
            param=param,
            code="context_length_exceeded",
        )
    return max_tokens if max_tokens is not None else min(room, default or room)


def _texts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages whose contents are texts. Raises ApiError for images and audio."""
    texts = []
    for number, message in enumerate(plain(list(messages))):
        if message["role"] == "developer":
            message["role"] = "system"
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = "".join(_text_of(part, number) for part in content)
        elif content is None and not message.get("tool_calls"):
            if message["role"] != "assistant":
                raise ApiError(f"messages.{number} has no content", param=f"messages.{number}.content")
            message["content"] = ""
        texts.append(message)
    return texts


def _text_of(part: Mapping[str, Any], number: int) -> str:
    if part["type"] not in {"text", "input_text", "output_text"} or not isinstance(part.get("text"), str):
        raise ApiError(
            f"messages.{number} has a part of type {str(part['type'])[:40]!r}; this model reads text only",
            param=f"messages.{number}.content",
            code="unsupported_content",
        )
    return str(part["text"])

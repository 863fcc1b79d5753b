"""Prompts as token ids: text, conversations by their template, and whether they fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.conversation import BadConversationError
from ropewalk.datapipe.chat.template import ChatTokenizer, open_tokenizer
from ropewalk.jobs.inference.engines.api.bodies import ChatRequest, CompletionRequest, Message, TokenizeRequest, plain
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.text import Vocabulary


class Prompts:
    """The tokenizer of a model and its chat template, as requests need them."""

    def __init__(self, files: Path, vocabulary: int) -> None:
        """`files` is a folder with a tokenizer; one without a chat template is asked by the plain one. Raises ConfigError."""
        self._tokenizer = open_tokenizer(files)
        self.vocabulary, self.text = vocabulary, Vocabulary(self._tokenizer)
        own = getattr(self._tokenizer, "chat_template", None)
        self._chat = ChatTokenizer(files, None if own else TEMPLATES["plain"])
        self._prefix = next(
            (token for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id) if token is not None), None
        )

    def of_completion(self, request: CompletionRequest) -> list[list[int]]:
        """The prompts of a request. Raises ApiError for one that is none."""
        given: Any = request.prompt
        if isinstance(given, str):
            return [self.encode(given)]
        if given and isinstance(given[0], int):
            return [self._checked(given)]
        if not given:
            raise ApiError("'prompt' is an empty list; give a text, token ids, or several of them", param="prompt")
        return [self.encode(one) if isinstance(one, str) else self._checked(one) for one in given]

    def of_chat(self, request: ChatRequest) -> list[int]:
        """The tokens that the assistant is asked with. Raises ApiError where the template refuses the conversation."""
        tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []] or None
        text = self.template(request.messages, None if request.tool_choice == "none" else tools)
        return self._tokens(text)

    def template(self, messages: Sequence[Message], tools: Any = None) -> str:
        """The text that the assistant is asked with. Raises ApiError."""
        try:
            return self._chat.render(_texts(messages), tools, prompt=True)
        except BadConversationError as error:
            raise ApiError(
                f"the chat template of the model refuses this conversation: {error.detail}", param="messages"
            ) from None

    def of_tokenize(self, request: TokenizeRequest) -> list[int]:
        """The tokens of a text or a conversation."""
        if request.messages:
            return self._tokens(self.template(request.messages))
        text = request.content if request.content is not None else request.prompt
        if text is None:
            raise ApiError("you must provide one of 'content', 'prompt' and 'messages'", param="content")
        special = request.add_special if request.add_special is not None else request.add_special_tokens
        return self.encode(text, special=bool(special))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included. Raises ApiError."""
        return str(self._tokenizer.backend_tokenizer.decode(self._checked(tokens) if tokens else [], skip_special_tokens=False))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; of an empty one the model's prefix token, if it may have any."""
        begins = bool(self._tokenizer.bos_token) and text.startswith(str(self._tokenizer.bos_token))
        found = self._encoded(text, special=special and not begins)
        return found or ([self._prefix] if special and self._prefix is not None else [])

    def _tokens(self, text: str) -> list[int]:
        return self._encoded(text, special=False)  # the template has written special tokens itself

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=special).ids)

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        if not tokens:
            raise ApiError("a prompt of token ids is empty; put the model's first token there", param="prompt")
        if (worst := max(tokens)) >= self.vocabulary:
            raise ApiError(f"token id {worst} is not below {self.vocabulary}, the size of the model's vocabulary", param="prompt")
        return list(tokens)


def check_fits(prompt: Sequence[int], max_tokens: int | None, context: int, default: int | None, param: str) -> int:
    """How many tokens the answer may have. Raises ApiError that says how long the prompt is and what the limit is.

    `default` is what an answer may have where the request names no number; None: what is left.
    """
    room = context - len(prompt)
    if room < 1:
        raise ApiError(
            f"the prompt has {len(prompt)} tokens, and the context of the model {context}, of which the answer needs at least"
            " 1; shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
    if max_tokens is not None and max_tokens > room:
        raise ApiError(
            f"the prompt has {len(prompt)} tokens and {max_tokens} were asked for as an answer, together"
            f" {len(prompt) + max_tokens}; the context of the model has {context}; shorten the prompt, or ask for at most {room}",
            param=param,
            code="context_length_exceeded",
        )
    return max_tokens if max_tokens is not None else min(room, default or room)


def _texts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages whose contents are texts. Raises ApiError for pictures and sounds."""
    found = []
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
        found.append(message)
    return found


def _text_of(part: Mapping[str, Any], number: int) -> str:
    if part["type"] not in {"text", "input_text", "output_text"} or not isinstance(part.get("text"), str):
        raise ApiError(
            f"messages.{number} has a part of type {str(part['type'])[:40]!r}; this model reads text alone",
            param=f"messages.{number}.content",
            code="unsupported_content",
        )
    return str(part["text"])

"""How conversations are read and written as text; light, as the command line reads it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ropewalk.cluster.config import Section, absolute
from ropewalk.datapipe.chat.built_in import TEMPLATES

KIND = "chat"  # the key of a manifest's `config` that says that it holds conversations
Format = Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt"]


def template_name(word: str) -> str:
    """The name of a built-in template as it is, anything else as an absolute path."""
    return word if word in TEMPLATES else absolute(word)


class ChatConfig(Section):
    """The format of conversations, and the template that makes one text of each."""

    format: Format = Field(
        default="auto",
        description="messages: {messages: [{role, content}]}; prompt_completion: {prompt, completion}, strings or messages;"
        " alpaca: {instruction, input, output}; sharegpt: {conversations: [{from, value}]}; auto: by each record's keys",
    )
    template: Annotated[str, AfterValidator(template_name)] | None = Field(
        default=None,
        description="a file with a Jinja chat template, or built in: chatml, plain; unset: the tokenizer's own, else plain",
    )
    system: str | None = Field(default=None, description="system prompt of conversations that have none")
    added_tokens: list[str] = Field(
        default=[], description="special tokens to add to the tokenizer; chatml adds its own where they are missing"
    )

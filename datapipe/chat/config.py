"""Keys of a job file for conversations. Imports nothing heavy, since the command line reads it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ropewalk.cluster.input_paths import absolute
from ropewalk.cluster.section import Section
from ropewalk.datapipe.chat.built_in import TEMPLATES

KIND = "chat"  # key in a manifest's `config` that marks a data set of conversations
Format = Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt"]


def template_name(name: str) -> str:
    """Return the name of a built-in template unchanged, anything else as an absolute path."""
    return name if name in TEMPLATES else absolute(name)


class ChatConfig(Section):
    """Format of conversations, and the chat template that renders them as text."""

    format: Format = Field(
        default="auto",
        description="messages: {messages: [{role, content}]}; prompt_completion: {prompt, completion}, strings or messages;"
        " alpaca: {instruction, input, output}; sharegpt: {conversations: [{from, value}]}; auto: by each record's keys",
    )
    template: Annotated[str, AfterValidator(template_name)] | None = Field(
        default=None,
        description="file with a Jinja chat template, or a built-in one: chatml, plain; unset: the tokenizer's own, else plain",
    )
    system: str | None = Field(default=None, description="system prompt for conversations without one")
    added_tokens: list[str] = Field(
        default=[], description="special tokens to add to the tokenizer; chatml adds its own if they are missing"
    )

"""A conversation with a model opened in this process."""

from pathlib import Path

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.conversation import BadConversationError, Message
from ropewalk.datapipe.chat.template import ChatTokenizer
from ropewalk.jobs.inference.scoring.generate import Sampling, generate
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model
from ropewalk.jobs.runs.models.find_model import find_model


class Chat:
    """A conversation; with the same seed the same messages get the same answers."""

    def __init__(
        self, opened: OpenModel, tokenizer: ChatTokenizer, sampling: Sampling, *, system: str | None = None, seed: int = 0
    ) -> None:
        self.opened, self.tokenizer, self.sampling, self.seed = opened, tokenizer, sampling, seed
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []

    def close(self) -> None:
        """Do nothing: the model is in this process."""

    def introduction(self) -> str:
        """Return the model's name, and a hint if it was not trained on conversations."""
        has_template = getattr(self.opened.tokenizer, "chat_template", None)
        return self.opened.name + ("" if has_template else " has no chat template: it continues the text rather than answers")

    def answer(self, text: str) -> str:
        """Return the model's answer to a message. Raises DataError if the chat template refuses the conversation."""
        messages = [*self.messages, {"role": "user", "content": text}]
        try:
            prompt = self.tokenizer.prompt_ids(messages)
        except BadConversationError as error:
            raise DataError(f"the chat template of {self.opened.name} refuses this conversation: {error.detail}") from None
        generated = next(generate(self.opened, [prompt], self.sampling, seed=self.seed, numbers=[len(messages)]))
        reply = generated.text.strip()
        self.messages = [*messages, {"role": "assistant", "content": reply}]
        return reply


def open_chat(ref: str, sampling: Sampling, *, root: Path | None = None, system: str | None = None, seed: int = 0) -> Chat:
    """Open a conversation with the model of a run or a directory; without a chat template the built-in `plain` is used.

    Raises ConfigError, CheckpointError.
    """
    location = find_model(ref, root)
    files = location.tokenizer if isinstance(location, RunDir) else location
    opened = open_model(ref, root)
    template = getattr(opened.tokenizer, "chat_template", None)
    return Chat(opened, ChatTokenizer(files, None if template else TEMPLATES["plain"]), sampling, system=system, seed=seed)

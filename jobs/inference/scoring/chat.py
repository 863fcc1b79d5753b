"""A conversation with a model: what it is told becomes the next message, what it writes the answer."""

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
    """One conversation. The same words get the same answers, by the seed."""

    def __init__(
        self, opened: OpenModel, tokenizer: ChatTokenizer, sampling: Sampling, *, system: str | None = None, seed: int = 0
    ) -> None:
        self.opened, self.tokenizer, self.sampling, self.seed = opened, tokenizer, sampling, seed
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []

    def answer(self, words: str) -> str:
        """What the model answers. Raises DataError where its chat template refuses the conversation."""
        asked = [*self.messages, {"role": "user", "content": words}]
        try:
            prompt = self.tokenizer.prompt_ids(asked)
        except BadConversationError as error:
            raise DataError(f"the chat template of {self.opened.name} refuses this conversation: {error.detail}") from None
        found = next(generate(self.opened, [prompt], self.sampling, seed=self.seed, numbers=[len(asked)]))
        said = found.text.strip()
        self.messages = [*asked, {"role": "assistant", "content": said}]
        return said


def open_chat(ref: str, sampling: Sampling, *, root: Path | None = None, system: str | None = None, seed: int = 0) -> Chat:
    """A conversation with the model of a run or a directory; one without a chat template is asked by the plain one.

    Raises ConfigError, CheckpointError.
    """
    found = find_model(ref, root)
    files = found.tokenizer if isinstance(found, RunDir) else found
    opened = open_model(ref, root)
    own = getattr(opened.tokenizer, "chat_template", None)
    return Chat(opened, ChatTokenizer(files, None if own else TEMPLATES["plain"]), sampling, system=system, seed=seed)

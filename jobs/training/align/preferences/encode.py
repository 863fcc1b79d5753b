"""A prompt and its answers → token ids, by a chat template or as the text stands."""

from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.conversation import BadConversationError
from ropewalk.datapipe.chat.template import ChatTokenizer, open_tokenizer
from ropewalk.jobs.training.align.preferences.records import Preference, Refused, conversations

TOO_LONG = "too_long"


class Tokens(NamedTuple):
    """Token ids of a prompt and of each of its answers, the end of turn included."""

    prompt: list[int]
    answers: tuple[list[int], ...]
    label: bool | None = None
    was_cut: bool = False


class Encoder:
    """Encodes preferences; none is longer than `seq_len` tokens.

    Messages are written by the tokenizer's chat template (else a plain built-in one). Text is too, as the user's and the
    assistant's, unless it is taken `verbatim`: then it is closed by the end-of-sequence token. Prompt and answer are
    encoded apart, as they are when the model is asked.
    """

    def __init__(
        self, tokenizer: Path, *, seq_len: int, cut: bool, verbatim: bool | None = None, system: str | None = None
    ) -> None:
        self.tokenizer: Any = open_tokenizer(tokenizer)
        own = self.tokenizer.chat_template
        self.chat = ChatTokenizer(tokenizer, None if own else TEMPLATES["plain"])
        self.verbatim = not own if verbatim is None else verbatim
        self.seq_len, self.cut, self.system = seq_len, cut, system

    def encode(self, preference: Preference) -> Tokens | Refused:
        """Token ids, or the reason why there are none."""
        verbatim = self.verbatim and isinstance(preference.prompt, str)
        try:
            prompt, answers = self._plain(preference) if verbatim else self._templated(preference)
        except BadConversationError as error:
            return Refused(error.reason)
        if not prompt:
            return Refused("empty_prompt")
        if not all(answers):
            return Refused("empty_mask")
        if len(answers) == 2 and answers[0] == answers[1]:
            return Refused("equal_answers")  # a template may strip what made them differ
        return self._fitted(Tokens(prompt, answers, preference.label))

    def _plain(self, preference: Preference) -> tuple[list[int], tuple[list[int], ...]]:
        end = self.tokenizer.eos_token_id
        answers = [self._ids(answer) for answer in preference.answers]
        closed = (ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in answers)
        return self.tokenizer(preference.prompt)["input_ids"], tuple(closed)

    def _templated(self, preference: Preference) -> tuple[list[int], tuple[list[int], ...]]:
        asked, said = conversations(preference.prompt, *preference.answers)
        if self.system is not None and asked[0]["role"] != "system":
            asked = [{"role": "system", "content": self.system}, *asked]
        before = self.chat.render(asked, preference.tools, prompt=True)
        wholes = [self.chat.render([*asked, *answer], preference.tools) for answer in said]
        if not all(whole.startswith(before) for whole in wholes):
            raise BadConversationError("template_not_prefix")
        return self._ids(before), tuple(self._ids(self._turn(whole[len(before) :])) for whole in wholes)

    def _turn(self, said: str) -> str:
        """Without the white space that a template writes behind the end of a turn: it is not the assistant's."""
        end = self.tokenizer.eos_token
        at = said.rfind(end) + len(end) if end and end in said else len(said)
        return said[:at] if not said[at:].strip() else said

    def _ids(self, text: Any) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _fitted(self, tokens: Tokens) -> Tokens | Refused:
        length = len(tokens.prompt) + max(map(len, tokens.answers))
        if length <= self.seq_len:
            return tokens
        if not self.cut:
            return Refused(TOO_LONG)
        room = self.seq_len - len(tokens.prompt)
        if room < 1:
            return Refused("no_room_for_an_answer")
        answers = tuple(answer[:room] for answer in tokens.answers)
        if len(answers) == 2 and answers[0] == answers[1]:
            return Refused("equal_answers_when_cut")
        return tokens._replace(answers=answers, was_cut=True)

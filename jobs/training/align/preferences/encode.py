"""Encode a prompt and its answers as token ids, with a chat template or as plain text."""

from pathlib import Path
from typing import Any, NamedTuple

from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.conversation import BadConversationError
from ropewalk.datapipe.chat.template import ChatTokenizer, open_tokenizer
from ropewalk.jobs.training.align.preferences.records import Preference, Refused, conversations

TOO_LONG = "too_long"


class Tokens(NamedTuple):
    """Token ids of a prompt and of each of its answers, with the end of turn."""

    prompt: list[int]
    answers: tuple[list[int], ...]
    label: bool | None = None
    was_cut: bool = False


class Encoder:
    """Encodes preferences, each with at most `seq_len` tokens.

    Messages are formatted by the tokenizer's chat template (else a plain built-in one). So is text, as the user's and the
    assistant's messages, unless it is `verbatim`: then only the end-of-sequence token is appended. Prompt and answer are
    encoded separately, as they are in generation.
    """

    def __init__(
        self, tokenizer: Path, *, seq_len: int, cut: bool, verbatim: bool | None = None, system: str | None = None
    ) -> None:
        self.tokenizer: Any = open_tokenizer(tokenizer)
        template = self.tokenizer.chat_template
        self.chat = ChatTokenizer(tokenizer, None if template else TEMPLATES["plain"])
        self.verbatim = not template if verbatim is None else verbatim
        self.seq_len, self.cut, self.system = seq_len, cut, system

    def encode(self, preference: Preference) -> Tokens | Refused:
        verbatim = self.verbatim and isinstance(preference.prompt, str)
        try:
            prompt, answers = self._plain(preference) if verbatim else self._apply_template(preference)
        except BadConversationError as error:
            return Refused(error.reason)
        if not prompt:
            return Refused("empty_prompt")
        if not all(answers):
            return Refused("empty_mask")
        if len(answers) == 2 and answers[0] == answers[1]:
            return Refused("equal_answers")  # a template may strip the difference
        return self._fit(Tokens(prompt, answers, preference.label))

    def _plain(self, preference: Preference) -> tuple[list[int], tuple[list[int], ...]]:
        end = self.tokenizer.eos_token_id
        answers = [self._ids(answer) for answer in preference.answers]
        closed = (ids if end is None or ids[-1:] == [end] else [*ids, end] for ids in answers)
        return self.tokenizer(preference.prompt)["input_ids"], tuple(closed)

    def _apply_template(self, preference: Preference) -> tuple[list[int], tuple[list[int], ...]]:
        prompt, answers = conversations(preference.prompt, *preference.answers)
        if self.system is not None and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": self.system}, *prompt]
        before = self.chat.render(prompt, preference.tools, prompt=True)
        wholes = [self.chat.render([*prompt, *answer], preference.tools) for answer in answers]
        if not all(whole.startswith(before) for whole in wholes):
            raise BadConversationError("template_not_prefix")
        return self.chat.ids(before), tuple(self.chat.ids(self._turn(whole[len(before) :])) for whole in wholes)

    def _turn(self, text: str) -> str:
        """Remove the white space that a template writes after the end of a turn: it is not the assistant's."""
        end = self.tokenizer.eos_token
        stop = text.rfind(end) + len(end) if end and end in text else len(text)
        return text[:stop] if not text[stop:].strip() else text

    def _ids(self, text: Any) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _fit(self, tokens: Tokens) -> Tokens | Refused:
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

"""A prompt and its answers → token ids, by the tokenizer's chat template or as plain text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from cluster.errors import DataError
from jobs.align.preferences.records import Preference, Refused, Text

TOO_LONG = "too_long"


class Tokens(NamedTuple):
    """Token ids of a prompt and of each of its answers, the end of turn included."""

    prompt: list[int]
    answers: tuple[list[int], ...]
    label: bool | None = None
    was_cut: bool = False


class Encoder:
    """Encodes preferences; none is longer than `seq_len` tokens."""

    def __init__(self, tokenizer: Path, *, seq_len: int, cut: bool) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer)
        self.seq_len, self.cut = seq_len, cut

    def encode(self, preference: Preference) -> Tokens | Refused:
        """Token ids, or the reason why there are none. Raises DataError for messages without a chat template."""
        encode: Callable[[Any, Any], tuple[list[int], list[int]] | Refused] = (
            self._plain if isinstance(preference.prompt, str) else self._templated
        )
        answers = []
        prompt: list[int] = []
        for answer in preference.answers:
            found = encode(preference.prompt, answer)
            if isinstance(found, Refused):
                return found
            prompt = found[0]
            answers.append(found[1])
        if not prompt:
            return Refused("empty_prompt")
        if not all(answers):
            return Refused("empty_mask")
        return self._fitted(Tokens(prompt, tuple(answers), preference.label))

    def _plain(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Text is encoded as it stands, and closed by the end-of-sequence token."""
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        return self.tokenizer(prompt)["input_ids"], ids if end is None or ids[-1:] == [end] else [*ids, end]

    def _templated(self, prompt: Text, answer: Text) -> tuple[list[int], list[int]] | Refused:
        if not self.tokenizer.chat_template:
            raise DataError(
                "data: it holds messages, and the model's tokenizer has no chat template; set chat_template to a Jinja file, "
                "or write prompts and answers as plain text"
            )
        try:
            before = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            whole = self.tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)
        except Exception:  # a template raises what it likes
            return Refused("template_failed")
        if not whole.startswith(before):
            return Refused("template_changes_the_prompt")
        said = whole[len(before) :]
        end = self.tokenizer.eos_token
        if end and end in said:
            said = said[: said.rindex(end) + len(end)]  # what a template writes between turns is not the assistant's
        return self._ids(before), self._ids(said)

    def _ids(self, text: str) -> list[int]:
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

"""Adapter to lm-eval: its requests are answered by all ranks."""

import re
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.evaluation.evaluate.team import Team, Work, Write
from ropewalk.jobs.inference.scoring.encode import encode, pair_request, rolling_requests
from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.stops import cut
from ropewalk.jobs.results.score import hash_of

_DEFAULT_NEW_TOKENS = 256  # default of lm-eval
_LENGTH_WORDS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN_WORDS = {*_LENGTH_WORDS, "until", "do_sample", "temperature", "top_p", "top_k"}


class RopewalkModel(LM):  # type: ignore[misc]
    """The model of rank 0; the other ranks serve the same team."""

    def __init__(self, opened: OpenModel, team: Team, seed: int) -> None:
        super().__init__()
        self._opened, self._team, self._seed = opened, team, seed
        self.near_ties: set[tuple[str, int]] = set()  # (task, item) whose decisions were recomputed exactly
        self.truncated: dict[str, int] = {}  # by task: requests that lost the beginning of their text

    @property
    def tokenizer_name(self) -> str:
        """Key of lm-eval's cache, which is disabled."""
        return self._opened.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template for lm-eval's records."""
        return str(self._opened.tokenizer.chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation; a template without system messages gets none."""
        from jinja2.exceptions import TemplateError

        def text(messages: list[dict[str, str]]) -> str:
            more = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
            return str(self._opened.tokenizer.apply_chat_template(messages, tokenize=False, **more))

        try:
            return text(chat_history)
        except TemplateError:
            return text([message for message in chat_history if message["role"] != "system"])

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation and whether it is greedy; the options of a question are one unit."""
        members: dict[tuple[str, int], list[int]] = {}
        for index, instance in enumerate(requests):
            members.setdefault((instance.task_name, instance.doc_id), []).append(index)
        work: dict[str, Work] = {}
        keys: dict[tuple[str, int], str] = {}
        for item, indices in members.items():
            pairs = [requests[index].args for index in indices]
            keys[item] = key = hash_of("loglikelihood", pairs)
            if key not in work:
                unit = [pair_request(self._opened, before, after, _lengths(after)) for before, after in pairs]
                work[key] = unit
                self._count_truncated(item[0], [len(r.context) + len(r.continuation) for r in unit])
                _check(item, unit)
        self._team.answer(work)
        answers_by_index: dict[int, tuple[float, bool]] = {}
        for item, indices in members.items():
            answers = self._team.ledger.get(keys[item])
            assert answers is not None
            for index, (value, greedy, exact) in zip(indices, answers["answers"], strict=True):
                answers_by_index[index] = (value, greedy)
                if exact:
                    self.near_ties.add(item)
        return [answers_by_index[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Return the log-likelihood of each whole text, in windows of the model's context."""
        work: dict[str, Work] = {}
        keys = []
        for instance in requests:
            (text,) = instance.args
            keys.append(hash_of("rolling", text))
            work[keys[-1]] = rolling_requests(self._opened, text)
        self._team.answer(work)
        records = [self._team.ledger.get(key) for key in keys]
        return [sum(answer[0] for answer in record["answers"]) if record else 0.0 for record in records]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return the text generated after each context, up to the first stop.

        A sampled text depends on the seed, the context and the number of the repeat.
        """
        work: dict[str, Work] = {}
        keys, stops = [], []
        repeats: dict[str, int] = {}
        for instance in requests:
            context, generation_kwargs = instance.args
            sampling = sampling_of(instance.task_name, generation_kwargs)
            plain = hash_of("generate", context, vars(sampling))
            repeat = repeats[plain] = repeats.get(plain, -1) + 1
            key = plain if sampling.temperature == 0 else hash_of(plain, repeat)
            keys.append(key)
            stops.append(sampling.stop)
            prompt = encode(self._opened, context) or [self._opened.prefix]
            self._count_truncated(instance.task_name, [len(prompt) + sampling.max_new_tokens])
            work[key] = Write(tuple(prompt), sampling, self._seed, int(re.sub(r"\D", "", key)[:15] or 0))
        self._team.answer(work)
        records = [self._team.ledger.get(key) for key in keys]
        return [cut(record["text"], stop) if record else "" for record, stop in zip(records, stops, strict=True)]

    def _count_truncated(self, task: str, lengths: Sequence[int]) -> None:
        cut_short = sum(length > self._opened.max_length + 1 for length in lengths)
        if cut_short:
            self.truncated[task] = self.truncated.get(task, 0) + cut_short


def _lengths(continuation: str) -> tuple[float, ...]:
    """Return lm-eval's normalizing lengths: characters and bytes of the option, with and without the leading space."""
    bare = continuation.lstrip()
    return tuple(float(n or 1) for text in (bare, continuation) for n in (len(text), len(text.encode("utf-8", "replace"))))


def _check(item: tuple[str, int], unit: Sequence[Any]) -> None:
    if any(not request.continuation for request in unit):
        raise DataError(f"task {item[0]}, item {item[1]}: an option has no tokens; see doc_to_choice and doc_to_target")


def sampling_of(task: str, kwargs: dict[str, Any]) -> Sampling:
    """Return a task's sampling parameters. Raises DataError for an unknown key, which would change the score."""
    if unknown := sorted(set(kwargs) - _KNOWN_WORDS):
        raise DataError(f"task {task}: unknown keys in generation_kwargs: {', '.join(unknown)}; leave them out")
    until = kwargs.get("until") or []
    length = next((kwargs[word] for word in _LENGTH_WORDS if kwargs.get(word) is not None), _DEFAULT_NEW_TOKENS)
    temperature = float(kwargs.get("temperature") or 0.0)
    if kwargs.get("do_sample") and temperature == 0:
        temperature = 1.0
    return Sampling(
        max_new_tokens=int(length),
        temperature=temperature if kwargs.get("do_sample", temperature > 0) else 0.0,
        top_p=float(kwargs.get("top_p") or 1.0),
        top_k=int(kwargs.get("top_k") or 0),
        stop=tuple([until] if isinstance(until, str) else until),
    )
